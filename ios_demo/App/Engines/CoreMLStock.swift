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
    private let context: Int
    private var model: MLModel?
    private var state: MLState?

    init(_ compiled: URL, units: Units, context: Int) {
        self.compiled = compiled
        self.units = units
        self.context = context
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
        var at = 0
        while true {
            let piece = Array(tokens[at..<min(at + CoreMLStock.callLength, tokens.count)])
            at += piece.count
            let mask = MLShapedArray<Float16>(repeating: 0, shape: [1, 1, 1, start + at])
            let inputs = try MLDictionaryFeatureProvider(dictionary: [
                PackageName.tokens: int32(piece, shape: [1, piece.count]),
                PackageName.mask: MLFeatureValue(shapedArray: mask),
            ])
            let output = try model.prediction(from: inputs, using: state)
            if at == tokens.count { return try logitsRow(output, piece.count - 1) }
        }
    }
}
