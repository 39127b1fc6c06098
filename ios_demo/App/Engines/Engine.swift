import CoreML
import Foundation
import MobileExportCore

/// Which of a phone's processors Core ML may use. ExecuTorch's XNNPACK uses the processor cores alone.
enum Units: String, CaseIterable, Identifiable {
    case gpu = "CPU and GPU"
    case neuralEngine = "CPU and Neural Engine"
    case cpu = "CPU"

    var id: String { rawValue }

    var coreMl: MLComputeUnits {
        switch self {
        case .gpu: return .cpuAndGPU
        case .neuralEngine: return .cpuAndNeuralEngine
        case .cpu: return .cpuOnly
        }
    }
}

/// The program that runs an artifact, not loaded yet.
///
/// - Throws: `Failure`: a format this app does not run; or Core ML's error where it cannot compile the package.
func makeProgram(for artifact: Artifact, units: Units) async throws -> any Program {
    let manifest = artifact.manifest
    if let graph = manifest.pte {
        return ExecuTorchEngine(path: artifact.model.path, maxPrompt: graph.maxPrompt)
    }
    guard let graph = manifest.coreml else {
        throw Failure(artifact.name, "format \(manifest.format), this app runs .pte and Core ML", "export it as one of these")
    }
    let compiled = try await compiledPackage(artifact.model, exportId: graph.exportId)
    switch graph.layout {
    case "stock":
        return CoreMLStock(compiled, units: units)
    case "functions":
        let length = min(graph.maxPrompt ?? 1, manifest.maxContext)
        return CoreMLFunctions(compiled, units: units, context: manifest.maxContext, promptLength: length)
    default:
        throw Failure(artifact.name, "layout \(graph.layout) of a package", "export with --layout stock or functions")
    }
}
