// swift-transformers' product Tokenizers as the demo calls it. From Sources/Tokenizers/Tokenizer.swift at tag 1.3.3; its argument
// hubApi, which has a default, is left out.
import Foundation

public protocol Tokenizer: Sendable {
    func encode(text: String, addSpecialTokens: Bool) -> [Int]
    func decode(tokens: [Int], skipSpecialTokens: Bool) -> String
}

extension Tokenizer {
    public func decode(tokens: [Int]) -> String { stub() }
}

public enum AutoTokenizer {
    public static func from(modelFolder: URL, strict: Bool = true) async throws -> Tokenizer { stub() }
}

func stub() -> Never { fatalError("only for the type checker") }
