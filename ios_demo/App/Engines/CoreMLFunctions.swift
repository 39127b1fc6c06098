import CoreML
import Foundation
import MobileExportCore

/// A package of layout `functions`: `prefill` takes a prompt in pieces of fixed length, `decode` a token.
///
/// Whether one state serves both functions is not documented, and the Neural Engine of some iPhones is said to refuse a function
/// with a state and more than one token. So both are tried, and where one fails, prompts go through `decode` token by token.
final class CoreMLFunctions: Program {
    let runtime = "Core ML, functions"
    let threads = 0

    private let compiled: URL
    private let units: Units
    private let context: Int
    private let promptLength: Int
    private var prefill: MLModel?
    private var decode: MLModel?
    private var state: MLState?
    private var prompts = "prompts through prefill"

    init(_ compiled: URL, units: Units, context: Int, promptLength: Int) {
        self.compiled = compiled
        self.units = units
        self.context = context
        self.promptLength = promptLength
    }

    /// The units, and which way prompts go: a profile says it, too.
    var backends: [String] { [units.rawValue, prompts] }

    func load() throws {
        decode = try loadedModel(compiled, units: units, function: PackageName.decode)
        do {
            prefill = try loadedModel(compiled, units: units, function: PackageName.prefill)
        } catch {
            leavePrefill("it does not load: \(error.localizedDescription)")
        }
    }

    func initialise() throws {
        if prefill != nil { try tryPrefill() }
        state = decode?.makeState()
    }

    func logits(of tokens: [Int], at start: Int) throws -> [Float] {
        guard let decode else { throw notLoaded() }
        if start == 0 { state = decode.makeState() }
        guard let state else { throw notLoaded() }
        var position = start
        var output: (any MLFeatureProvider)?
        let length = prefill == nil ? 1 : promptLength
        for piece in Pieces.padded(of: tokens, at: start, length: length, context: context) {
            output = piece.count > 1 ? try prompt(piece, position, state) : try token(piece[0], position, state)
            position += piece.count
        }
        return try logitsRow(output, 0)
    }

    /// One call of `prefill`; any token will do as padding, what is behind the last one is never seen.
    private func prompt(_ tokens: [Int], _ position: Int, _ state: MLState) throws -> any MLFeatureProvider {
        guard let prefill else { throw notLoaded() }
        let padded = tokens + Array(repeating: tokens[0], count: promptLength - tokens.count)
        let inputs = try MLDictionaryFeatureProvider(dictionary: [
            PackageName.tokens: int32(padded, shape: [1, promptLength]),
            PackageName.position: int32([position], shape: [1]),
            PackageName.count: int32([tokens.count], shape: [1]),
        ])
        return try prefill.prediction(from: inputs, using: state)
    }

    private func token(_ token: Int, _ position: Int, _ state: MLState) throws -> any MLFeatureProvider {
        guard let decode else { throw notLoaded() }
        let inputs = try MLDictionaryFeatureProvider(dictionary: [
            PackageName.tokens: int32([token], shape: [1, 1]),
            PackageName.position: int32([position], shape: [1]),
        ])
        return try decode.prediction(from: inputs, using: state)
    }

    /// Gives `prefill` up unless a token after a prompt through it gets the logits it gets when all went through `decode`, up to
    /// what float16 arithmetic in another order does to them.
    private func tryPrefill() throws {
        guard let decode else { throw notLoaded() }
        guard promptLength > 1, promptLength < context else { return leavePrefill("it leaves no room for an answer") }
        let tokens = [3, 4]  // in every vocabulary
        let apart = decode.makeState()
        _ = try token(tokens[0], 0, apart)
        _ = try token(tokens[1], 1, apart)
        let wanted = try logitsRow(try token(5, 2, apart), 0)
        let shared = decode.makeState()
        do {
            _ = try prompt(tokens, 0, shared)
        } catch {
            return leavePrefill("it does not take the state: \(error.localizedDescription)")
        }
        let found = try logitsRow(try token(5, 2, shared), 0)
        let largest = wanted.map { abs($0) }.max() ?? 0
        let difference = zip(found, wanted).map { abs($0 - $1) }.max() ?? 0
        if difference > CoreMLFunctions.agreement * largest { leavePrefill("the two functions do not share the state") }
    }

    /// Two sums of some thousand float16 values in different order; without the state they differ by the size of the logits.
    private static let agreement: Float = 0.02

    private func leavePrefill(_ why: String) {
        prefill = nil
        prompts = "prompts through decode, token by token; prefill: \(why)"
    }
}
