import CoreML
import Foundation
import MobileExportCore

/// A package of layout `stock`, called as Apple's example host calls one: the mask's length says where the tokens stand, and
/// causality is inside the graph.
final class CoreMLStock: Program {
    /// Most tokens in a call: the package takes any number, and gives logits for every one of them.
    static let callLength = 128

    let runtime = "Core ML, stock"
    let threads = 0
    let backends: [String]

    private let compiled: URL
    private let units: Units
    private var model: MLModel?
    private var state: MLState?

    init(_ compiled: URL, units: Units) {
        self.compiled = compiled
        self.units = units
        backends = [units.rawValue]
    }

    func load() throws {
        model = try loadedModel(compiled, units: units)
    }

    func initialise() throws {
        state = model?.makeState()
    }

    func logits(of tokens: [Int], at start: Int) throws -> [Float] {
        guard let model else { throw notLoaded() }
        if start == 0 { state = model.makeState() }
        guard let state else { throw notLoaded() }
        var end = start
        var output: (any MLFeatureProvider)?
        var rows = 0
        for piece in Pieces.upTo(CoreMLStock.callLength, of: tokens) {
            end += piece.count
            rows = piece.count
            let mask = MLShapedArray<Float16>(repeating: 0, shape: [1, 1, 1, end])
            let inputs = try MLDictionaryFeatureProvider(dictionary: [
                PackageName.tokens: int32(piece, shape: [1, piece.count]),
                PackageName.mask: MLFeatureValue(shapedArray: mask),
            ])
            output = try model.prediction(from: inputs, using: state)
        }
        return try logitsRow(output, rows - 1)
    }
}
