import Foundation

/// manifest.json as mobile-export writes it: of its fields, those the app reads. Names are the file's, in camel case.
public struct Manifest: Decodable, Sendable {
    public static let schemaVersion = 5
    public static let name = "manifest.json"

    public let schemaVersion: Int
    public let format: String
    public let files: [FileDigest]
    public let source: String
    public let spec: Spec
    public let sharing: Sharing
    public let recipe: Recipe
    public let maxContext: Int
    public let parts: [Part]
    public let kvCache: KvCacheSize
    public let matrices: [String: String]
    public let pte: PteGraph?
    public let coreml: CoreMlGraph?
    public let tokenizerFiles: [String]
    public let bosId: Int?
    public let addsBos: Bool
    public let eosIds: [Int]
    public let chat: Chat?

    /// The file, or the package folder, a runtime is given.
    public var file: String { files[0].name.components(separatedBy: "/")[0] }

    /// The Core ML package it is, or has for a delegate.
    public var package: CoreMlGraph? { pte?.coreMl ?? coreml }

    /// The manifest of an artifact folder.
    ///
    /// - Throws: `Failure`: there is none, it is not one, or of another version.
    public static func read(folder: URL) throws -> Manifest {
        let path = folder.appendingPathComponent(name)
        guard let data = try? Data(contentsOf: path) else {
            throw Failure(folder.lastPathComponent, "no \(name) in it", "pick a folder that mobile-export wrote")
        }
        return try read(data, place: "\(folder.lastPathComponent)/\(name)")
    }

    /// The manifest in the bytes of a file; `place` names it in errors.
    public static func read(_ data: Data, place: String = name) throws -> Manifest {
        struct Version: Decodable { let schemaVersion: Int }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let again = "export the artifact again"
        do {
            let version = try decoder.decode(Version.self, from: data).schemaVersion
            guard version == schemaVersion else {
                throw Failure(place, "schema_version \(version), this app reads \(schemaVersion)", again)
            }
            let manifest = try decoder.decode(Manifest.self, from: data)
            guard !manifest.files.isEmpty else { throw Failure(place, "files is empty", again) }
            if let chat = manifest.chat, chat.assistant.count != 2 || (chat.system ?? ["", ""]).count != 2 {
                throw Failure(place, "chat: system and assistant are two texts each", again)
            }
            return manifest
        } catch let error as DecodingError {
            throw Failure(place, explain(error), again)
        }
    }
}

/// A file of the artifact.
public struct FileDigest: Decodable, Sendable {
    public let name: String
    public let bytes: Int
    public let sha256: String
}

/// A part of the artifact's file, and what it weighs.
public struct Part: Decodable, Sendable {
    public let name: String
    public let bytes: Int
}

/// What a graph depends on: of it, what sizes follow from. Of RWKV: no heads, attentionHiddenSize instead.
public struct Spec: Decodable, Sendable {
    public let family: String
    public let vocabSize: Int
    public let hiddenSize: Int
    public let intermediateSize: Int
    public let numAttentionHeads: Int?
    public let numKeyValueHeads: Int?
    public let headDim: Int?
    public let maxPositionEmbeddings: Int
    public let embeddingSize: Int?
    public let learnedPositions: Int?
    public let attentionHiddenSize: Int?
    public let ropes: [Rope]?
    public let blocks: [BlockSpec]?
}

/// A rotary table; how many there are is all that counts here.
public struct Rope: Decodable, Sendable {}

/// What one numbered block does. window, chunk: positions it attends to at most.
public struct BlockSpec: Decodable, Sendable {
    public let mixer: String
    public let window: Int?
    public let chunk: Int?

    /// Most positions a token attends to, its own included; nil: its whole past.
    public var reach: Int? { [window, chunk].compactMap { $0 }.min() }
}

/// Blocks that are stored, by their numbers, and the order they run in.
public struct Sharing: Decodable, Sendable {
    public let schedule: [Int]
    public let tied: Bool
    public let blocks: [Int]
}

public struct Recipe: Decodable, Sendable {
    public let name: String
}

public struct KvCacheSize: Decodable, Sendable {
    public let dtype: String
    public let slots: Int
    public let bytesAtMaxContext: Int
    public let stateBytes: Int
}

/// What only a .pte has. coreMl: the package its one delegate is.
public struct PteGraph: Decodable, Sendable {
    public let maxPrompt: Int
    public let attention: String
    public let coreMl: CoreMlGraph?
}

/// What only a Core ML package has. maxPrompt: tokens in a call of `prefill`; nil where a call takes any number.
/// exportId: no other package has it.
public struct CoreMlGraph: Decodable, Sendable {
    public let layout: String
    public let maxPrompt: Int?
    public let exportId: String
}

/// What a decoder missed, by its place in the file.
private func explain(_ error: DecodingError) -> String {
    func words(_ context: DecodingError.Context, _ what: String) -> String {
        let place = context.codingPath.map { asWritten($0.stringValue) }.joined(separator: ".")
        return place.isEmpty ? what : "\(place): \(what)"
    }
    switch error {
    case .keyNotFound(let key, let context): return words(context, "no \(asWritten(key.stringValue))")
    case .typeMismatch(_, let context), .valueNotFound(_, let context): return words(context, "not of its type")
    case .dataCorrupted(let context): return words(context, "not JSON")
    @unknown default: return "not a manifest"
    }
}

/// maxContext -> max_context, as the file has it.
private func asWritten(_ name: String) -> String {
    name.reduce(into: "") { $0 += $1.isUppercase ? "_" + $1.lowercased() : String($1) }
}
