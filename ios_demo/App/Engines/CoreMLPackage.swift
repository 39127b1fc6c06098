import CoreML
import Foundation
import MobileExportCore

/// Names in our packages: mobile_export/emit/coreml/layouts.py has the same.
enum PackageName {
    static let tokens = "inputIds"
    static let mask = "causalMask"
    static let position = "position"
    static let count = "count"
    static let logits = "logits"
    static let prefill = "prefill"
    static let decode = "decode"
}

/// A package as the system runs it. Compiled once, and kept under the id of its export.
func compiledPackage(_ package: URL, exportId: String) async throws -> URL {
    let files = FileManager.default
    let kept = URL.applicationSupportDirectory.appending(path: "compiled/\(exportId).mlmodelc")
    if files.fileExists(atPath: kept.path) { return kept }
    let made = try await MLModel.compileModel(at: package)
    try files.createDirectory(at: kept.deletingLastPathComponent(), withIntermediateDirectories: true)
    try files.moveItem(at: made, to: kept)
    return kept
}

/// A function of a compiled package, ready for calls. function: nil for a package that has only one.
func loadedModel(_ compiled: URL, units: Units, function: String? = nil) throws -> MLModel {
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units.coreMl
    configuration.functionName = function
    return try MLModel(contentsOf: compiled, configuration: configuration)
}

/// Whole numbers as a package takes them: int32.
func int32(_ values: [Int], shape: [Int]) -> MLFeatureValue {
    MLFeatureValue(shapedArray: MLShapedArray<Int32>(scalars: values.map { Int32($0) }, shape: shape))
}

/// One row, [vocabulary], of a package's logits, [1, rows, vocabulary].
///
/// - Throws: `Failure`: there are none of that name, rank and type.
func logitsRow(_ output: (any MLFeatureProvider)?, _ row: Int) throws -> [Float] {
    guard let value = output?.featureValue(for: PackageName.logits),
        let logits = value.shapedArrayValue(of: Float16.self), logits.shape.count == 3, row < logits.shape[1]
    else {
        throw Failure("model.mlpackage", "gives no float16 \(PackageName.logits) of three axes", "export the artifact again")
    }
    return logits[0, row].scalars.map { Float($0) }
}

/// What is called before it was loaded.
func notLoaded() -> Failure {
    Failure("model.mlpackage", "is not loaded", "this is a bug of the app; report it")
}
