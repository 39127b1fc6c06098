import Foundation
import MobileExportCore
import Tokenizers

/// What an answer brings while it is made.
enum Said {
    case text(String)
    case done(AnswerTimes)
}

/// A model and its tokenizer. An actor: calls come one after the other, off the main thread.
actor LoadedModel {
    private let artifact: Artifact
    private let program: any Program
    private let tokenizer: any Tokenizer
    private let answering: Answering

    /// Loads an artifact; seconds, and the first time, while Core ML compiles it, more.
    ///
    /// - Throws: `Failure`: no tokenizer, files that were changed, or nothing this app runs; or what the runtime says.
    init(_ artifact: Artifact, units: Units) async throws {
        let manifest = artifact.manifest
        guard manifest.tokenizerFiles.contains("tokenizer.json") else {
            let next = "export a checkpoint that has one, or one with a tokenizer.json"
            throw Failure(artifact.name, "has no tokenizer.json", next)
        }
        try artifact.checkFiles()
        let tokenizer = try await AutoTokenizer.from(modelFolder: artifact.folder)
        let program = try await makeProgram(for: artifact, units: units)
        try program.load()
        try program.initialise()
        self.artifact = artifact
        self.program = program
        self.tokenizer = tokenizer
        answering = Answering(program, context: manifest.maxContext, ends: manifest.eosIds) { tokenizer.decode(tokens: $0) }
    }

    /// The answer to the last of `turns`, of user and assistant in turn; without a chat template the text that goes on from it.
    nonisolated func answer(_ turns: [String], most: Int) -> AsyncThrowingStream<Said, any Error> {
        AsyncThrowingStream { said in
            let work = Task {
                do {
                    said.yield(.done(try await self.run(turns, most: most) { said.yield(.text($0)) }))
                    said.finish()
                } catch {
                    said.finish(throwing: error)
                }
            }
            said.onTermination = { _ in work.cancel() }
        }
    }

    private func run(_ turns: [String], most: Int, say: (String) -> Void) throws -> AnswerTimes {
        try answering.answer(tokens(turns), most: most, stop: { Task.isCancelled }, say: say)
    }

    private func tokens(_ turns: [String]) -> [Int] {
        if let chat = artifact.manifest.chat {
            return tokenizer.encode(text: chat.prompt(turns), addSpecialTokens: false)  // the template writes its own
        }
        let tokens = tokenizer.encode(text: turns.last ?? "", addSpecialTokens: false)
        guard artifact.manifest.addsBos, let bos = artifact.manifest.bosId else { return tokens }
        return [bos] + tokens
    }
}
