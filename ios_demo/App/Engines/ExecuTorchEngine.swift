import ExecuTorch
import Foundation
import MobileExportCore

/// A .pte in ExecuTorch: `forward` with tokens int64 [1, S] and their start position int64 [1] gives the last one's logits.
final class ExecuTorchEngine: Program {
    /// The release its Swift package is pinned to in project.yml, and the artifact is made with.
    static let version = "1.5.1"

    let runtime = "executorch \(version), Swift"
    let threads = 0  // its pool has a thread for each performance core; the Swift interface sets and tells nothing

    private let module: Module
    private let maxPrompt: Int

    init(path: String, maxPrompt: Int) {
        module = Module(filePath: path, loadMode: .mmap)
        self.maxPrompt = maxPrompt
    }

    var backends: [String] { (try? module.methodMetadata("forward").backendNames) ?? [] }

    func load() throws {
        try module.load()
    }

    func initialise() throws {
        try module.load("forward")
    }

    func logits(of tokens: [Int], at start: Int) throws -> [Float] {
        var position = start
        var logits: Tensor<Float>?
        for piece in Pieces.upTo(maxPrompt, of: tokens) {
            let ids = Tensor<Int64>(piece.map { Int64($0) }, shape: [1, piece.count])
            let outputs: [Value] = try module.forward([ids, Tensor<Int64>([Int64(position)], shape: [1])])
            logits = outputs.first?.tensor()
            position += piece.count
        }
        guard let logits else { throw Failure("model.pte", "gives no float32 logits", "export the artifact again") }
        return logits.scalars()
    }
}
