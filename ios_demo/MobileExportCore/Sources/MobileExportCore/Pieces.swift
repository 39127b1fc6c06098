/// How a text goes into calls that take a limited number of tokens.
public enum Pieces {
    /// As many tokens a call as it takes.
    public static func upTo(_ most: Int, of tokens: [Int]) -> [[Int]] {
        stride(from: 0, to: tokens.count, by: most).map { Array(tokens[$0..<min($0 + most, tokens.count)]) }
    }

    /// For a function that takes `length` tokens, padded at their end, and one that takes a single token.
    ///
    /// A padded call needs rows for its padding, too: the last tokens before the end of the context go one by one.
    public static func padded(of tokens: [Int], at start: Int, length: Int, context: Int) -> [[Int]] {
        var pieces: [[Int]] = []
        var at = 0
        while at < tokens.count {
            let fits = context - start - at >= length
            let count = fits ? min(length, tokens.count - at) : 1
            pieces.append(Array(tokens[at..<(at + count)]))
            at += count
        }
        return pieces
    }
}
