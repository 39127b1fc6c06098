import Foundation

/// A checkpoint's chat template as plain strings; the exporter checked that they give what the template gives.
///
/// opening: all before the first user text. system: instead of it, around a system text; nil where there may be none.
/// assistant: around an assistant's text, from the user text before it to the one after it.
/// answer: after the last user text; the model goes on there.
public struct Chat: Decodable, Equatable, Sendable {
    public let opening: String
    public let system: [String]?
    public let assistant: [String]
    public let answer: String

    /// The text a model is given. Texts go in without white space around them.
    ///
    /// - Parameters:
    ///   - turns: of the user and the assistant in turn, the user's first and last.
    ///   - system: only where the template takes one.
    public func prompt(_ turns: [String], system text: String? = nil) -> String {
        precondition(turns.count % 2 == 1, "ends with a user text")
        var prompt = opening
        if let text, let system { prompt = system[0] + trimmed(text) + system[1] }
        for (number, turn) in turns.enumerated() {
            prompt += number % 2 == 0 ? trimmed(turn) : assistant[0] + trimmed(turn) + assistant[1]
        }
        return prompt + answer
    }

    private func trimmed(_ text: String) -> String { text.trimmingCharacters(in: .whitespacesAndNewlines) }
}
