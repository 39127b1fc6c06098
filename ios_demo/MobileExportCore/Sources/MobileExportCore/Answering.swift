import Foundation

/// Text out of tokens as they come: a character is told once all its bytes are there.
struct TextStream {
    private let decode: ([Int]) -> String
    private var tokens: [Int] = []
    private var told = ""

    init(_ decode: @escaping ([Int]) -> String) { self.decode = decode }

    /// What one more token adds to the text; empty while a character is incomplete.
    mutating func add(_ token: Int) -> String {
        tokens.append(token)
        let text = decode(tokens)
        guard !text.hasSuffix("\u{FFFD}"), text.hasPrefix(told) else { return "" }
        let new = String(text.dropFirst(told.count))
        told = text
        return new
    }
}

/// How an answer went. firstTokenS: from the question to the first token. tokensPerS: of those after it.
public struct AnswerTimes: Equatable, Sendable {
    public let promptTokens: Int
    public let newTokens: Int
    public let firstTokenS: Double
    public let tokensPerS: Double?
    /// The model ended it; else the context was full, it was as long as was asked for, or it was stopped.
    public let ended: Bool
}

/// One text the model goes on with, most likely token by most likely token; what it has read stays in its cache.
public final class Answering {
    private let program: Program
    private let context: Int
    private let ends: Set<Int>
    private let decode: ([Int]) -> String
    private var read: [Int] = []  // the tokens in the model's cache

    /// - Parameter decode: text of tokens.
    public init(_ program: Program, context: Int, ends: [Int], decode: @escaping ([Int]) -> String) {
        self.program = program
        self.context = context
        self.ends = Set(ends)
        self.decode = decode
    }

    /// Goes on after `prompt` until the model ends, `most` tokens are there, the context is full, or `stop` says so.
    ///
    /// - Parameters:
    ///   - prompt: the whole text so far, as tokens. What of it is in the cache already is not read again.
    ///   - say: called with every piece of text.
    /// - Throws: `Failure`: the prompt is empty or leaves no room; or whatever the model throws.
    public func answer(
        _ prompt: [Int],
        most: Int,
        now: () -> Double = { ProcessInfo.processInfo.systemUptime },
        stop: () -> Bool = { false },
        say: (String) -> Void
    ) throws -> AnswerTimes {
        guard !prompt.isEmpty else { throw Failure("prompt", "it is empty", "write something") }
        guard prompt.count < context else {
            let what = "\(prompt.count) tokens, the model holds \(context)"
            throw Failure("prompt", what, "begin a new chat, or export with a longer --max-context")
        }
        // A text is taken up where it ended or begun anew, not at a position between: a windowed cache has lost what lay there.
        let known = prompt.count > read.count && prompt.starts(with: read) ? read.count : 0
        var fed = Array(prompt[..<known])
        var next = Array(prompt[known...])
        read = []  // until a call is through, nobody knows what the cache holds
        var stream = TextStream(decode)
        let began = now()
        var firstTokenS = 0.0
        var count = 0
        var ended = false
        while true {
            let logits = try program.logits(of: next, at: fed.count)
            fed += next
            let token = greatest(logits)
            if count == 0 { firstTokenS = now() - began }
            if ends.contains(token) {
                ended = true
                break
            }
            count += 1
            next = [token]
            say(stream.add(token))
            if count == most || fed.count == context || stop() { break }
        }
        read = fed
        let rest = now() - began - firstTokenS
        return AnswerTimes(
            promptTokens: prompt.count, newTokens: count, firstTokenS: firstTokenS,
            tokensPerS: count > 1 && rest > 0 ? Double(count - 1) / rest : nil, ended: ended)
    }
}
