/// What a memory estimate needs to know of a model, from its manifest.
public struct ModelFacts {
    static let usualPrompt = 128  // tokens in one call, where the artifact leaves it open
    static let valueBytes = ["float32": 4, "float16": 2, "int8": 1]
    static let int8RowExtra = 5  // a .pte keeps a float32 scale and an int8 zero point beside every int8 row of a head

    let isCoreMl: Bool
    let spec: Spec
    let matrices: [MatrixPlan]
    let schedule: [Int]
    let blocks: [Int]
    let tied: Bool
    let slots: Int
    let kvDtype: String
    let stateBytes: Int
    let floatBytes: Int
    let graphBytes: Int
    let attention: String
    let maxContext: Int
    let promptChunk: Int

    /// - Throws: `Failure`: a format this app does not run, or a manifest that contradicts itself.
    public init(_ manifest: Manifest) throws {
        guard manifest.pte != nil || manifest.coreml != nil else {
            throw Failure(manifest.file, "format \(manifest.format), this app runs .pte and Core ML", "export as one of these")
        }
        try ModelFacts.checkSizes(manifest)
        isCoreMl = manifest.package != nil
        spec = manifest.spec
        matrices = try manifest.matrices.sorted { $0.key < $1.key }.map {
            try MatrixPlan(name: $0.key, precision: $0.value, spec: manifest.spec, sharing: manifest.sharing)
        }
        schedule = manifest.sharing.schedule
        blocks = manifest.sharing.blocks
        tied = manifest.sharing.tied
        slots = manifest.kvCache.slots
        kvDtype = manifest.kvCache.dtype
        stateBytes = manifest.kvCache.stateBytes
        floatBytes = manifest.parts.first { $0.name == "norms" }?.bytes ?? 0
        graphBytes = manifest.parts.first { $0.name == "graph" }?.bytes ?? 0
        attention = manifest.pte?.attention ?? "custom"
        maxContext = manifest.maxContext
        promptChunk = manifest.pte?.maxPrompt ?? min(ModelFacts.usualPrompt, manifest.maxContext)
        let again = "export the artifact again"
        guard !schedule.isEmpty, Set(schedule) == Set(0..<blocks.count) else {
            throw Failure(Manifest.name, "sharing: the schedule does not run the stored blocks", again)
        }
        guard spec.attentionHiddenSize != nil || blocks.allSatisfy({ (spec.blocks ?? []).indices.contains($0) }) else {
            throw Failure(Manifest.name, "spec: a stored block is not in it", again)
        }
        guard ModelFacts.valueBytes[kvDtype] != nil else {
            throw Failure(Manifest.name, "kv_cache.dtype is \(kvDtype)", again)
        }
        let said = manifest.kvCache.bytesAtMaxContext
        let known = kvBytes(maxContext)
        guard said == known else {
            throw Failure(Manifest.name, "kv_cache.bytes_at_max_context is \(said), its spec gives \(known)", again)
        }
    }

    /// Sizes that no model has would make sums that no number holds.
    private static func checkSizes(_ manifest: Manifest) throws {
        func within(_ name: String, _ value: Int?, _ least: Int, _ bits: Int) throws {
            guard let value, value < least || value > 1 << bits else { return }
            throw Failure(Manifest.name, "\(name) is \(value)", "export the artifact again")
        }
        let spec = manifest.spec
        try within("spec.vocab_size", spec.vocabSize, 1, 24)
        try within("spec.hidden_size", spec.hiddenSize, 1, 20)
        try within("spec.intermediate_size", spec.intermediateSize, 1, 22)
        try within("spec.embedding_size", spec.embeddingSize, 1, 20)
        try within("spec.num_attention_heads", spec.numAttentionHeads, 1, 12)
        try within("spec.num_key_value_heads", spec.numKeyValueHeads, 1, 12)
        try within("spec.head_dim", spec.headDim, 1, 12)
        try within("spec.learned_positions", spec.learnedPositions, 0, 24)
        try within("spec.attention_hidden_size", spec.attentionHiddenSize, 1, 20)
        for block in spec.blocks ?? [] { try within("spec.blocks", block.reach, 1, 24) }
        try within("max_context", manifest.maxContext, 1, 24)
        try within("pte.max_prompt", manifest.pte?.maxPrompt, 1, 24)
        try within("sharing.schedule", manifest.sharing.schedule.count, 1, 10)
        try within("kv_cache.state_bytes", manifest.kvCache.stateBytes, 0, 48)
        for part in manifest.parts { try within("parts.\(part.name)", part.bytes, 0, 48) }
    }

    var storedBlocks: Int { blocks.count }

    /// Values of all matrices, every stored one once.
    var parameters: Int { matrices.reduce(0) { $0 + $1.parameters } }

    /// The matrices something is multiplied with, a tied table among them; others are only gathered from.
    var multiplied: [MatrixPlan] {
        matrices.filter { $0.name != MatrixPlan.positions && ($0.name != MatrixPlan.embedding || tied) }
    }

    /// The matrices that are gathered from.
    var gathered: [MatrixPlan] {
        matrices.filter { $0.name == MatrixPlan.positions || $0.name == MatrixPlan.embedding }
    }

    /// Bytes of keys and values over all slots, with so many rows in each.
    func kvBytes(_ context: Int) -> Int {
        guard let heads = spec.numKeyValueHeads, let size = spec.headDim else { return 0 }
        let value = ModelFacts.valueBytes[kvDtype]!  // checked when it was made
        let extra = !isCoreMl && kvDtype == "int8" ? ModelFacts.int8RowExtra : 0
        return 2 * kvRows(context) * heads * (size * value + extra)
    }

    /// Rows of all slots: in a .pte a windowed block keeps what its window and a call's tokens need.
    private func kvRows(_ context: Int) -> Int {
        let kinds = schedule.compactMap { spec.blocks?[blocks[$0]] }.filter { $0.mixer == "attention" }
        return kinds.reduce(0) { rows, kind in
            guard !isCoreMl, let reach = kind.reach else { return rows + context }
            return rows + min(context, reach + promptChunk - 1)
        }
    }
}
