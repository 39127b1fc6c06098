/// What ExecuTorch keeps resident for a .pte, term by term: mobile_export/budget/pte_memory.py says where it comes from.
enum PteConstants {
    static let rowBytes = 8.0
    static let floatRowBytes = 4.0
    static let kernelRows = 16.0
    static let delegateBytes = 0.031 * MemoryEstimate.mib
    static let executionBytes = 0.006 * MemoryEstimate.mib
    static let arenaCustom = 8.0
    static let arenaCore = 16.0 / 3.0
}

func pteMemory(_ facts: ModelFacts, context: Int, promptChunk: Int, packedFile: Bool) -> [Term] {
    let packed = facts.multiplied.map(packedCopy).total() + packedNorms(facts)
    let table = Double(facts.gathered.reduce(0) { $0 + $1.payloadBytes } + rotaryBytes(facts, context))
    let libraries = "the runtime's libraries before anything is loaded"
    let between = "values between delegates, \(promptChunk) tokens in one call"
    var terms = [
        Term("process", dirty: mib(0.3, 0.35, 8), clean: mib(3, 4.4, 15), why: libraries),
        Term("runtime", dirty: runtimeBytes(facts), clean: mib(0.5, 0.8, 2), why: "delegates and instructions"),
        Term("code", dirty: mib(0.5, 1.6, 3), clean: mib(3, 4.8, 8), .run, why: "stacks, and pages of libraries that run"),
        packedFile
            ? Term("packed weights", clean: packed, why: "in a mapped file")
            : Term("packed weights", dirty: packed, why: "XNNPACK's copy of every distinct matrix"),
        Term("table", clean: Interval(exactly: table), why: "gathered from, and rotary tables; mapped"),
        Term("graph", clean: Interval(exactly: Double(facts.graphBytes)), why: "the program's instructions in the file"),
        kvTerm(facts, context),
        Term("arena", dirty: arena(facts, context, promptChunk), why: between),
        Term("workspace", dirty: workspace(facts, promptChunk), .run, why: "values within a delegate"),
        Term("logits", dirty: Interval(exactly: Double(4 * facts.spec.vocabSize)), .run, why: "of one token, float32"),
    ]
    if !packedFile && !facts.tied {
        let largest = facts.multiplied.map(\.payloadBytes).max() ?? 0
        let why = "the largest matrix as the file has it, while it is packed"
        terms.append(Term("source", clean: Interval(exactly: Double(largest)), .load, why: why))
    }
    return terms
}

func kvTerm(_ facts: ModelFacts, _ context: Int) -> Term {
    let bytes = Interval(exactly: Double(facts.kvBytes(context) + facts.stateBytes))
    return Term("KV cache", dirty: bytes, why: "\(facts.slots) slots of \(context) tokens, \(facts.kvDtype)")
}

func mib(_ low: Double, _ likely: Double, _ high: Double) -> Interval {
    Interval(low, likely, high).times(MemoryEstimate.mib)
}

/// One packed copy, whatever the number of executions: equal delegates are one.
private func packedCopy(_ matrix: MatrixPlan) -> Interval {
    let payload = Double(matrix.payloadBytes)
    let extra = matrix.bits == 32 ? PteConstants.floatRowBytes : PteConstants.rowBytes
    let likely = payload + extra * Double(matrix.rows)
    return Interval(payload, likely, 1.02 * likely)
}

/// Each norm's mean as a product with a constant row, and its weights.
private func packedNorms(_ facts: ModelFacts) -> Interval {
    let rows = Double(2 * facts.storedBlocks + 1) * PteConstants.kernelRows
    let likely = rows * 4 * Double(facts.spec.hiddenSize)
    let floats = Double(facts.floatBytes)
    return Interval(min(floats, likely), likely, likely + floats)
}

private func runtimeBytes(_ facts: ModelFacts) -> Interval {
    let delegates = Double(2 * facts.storedBlocks + 1)
    let executions = Double(facts.schedule.count)
    let likely = 0.12 * MemoryEstimate.mib + PteConstants.delegateBytes * delegates + PteConstants.executionBytes * executions
    return Interval(0.5 * likely, likely, 1.5 * likely)
}

private func rotaryBytes(_ facts: ModelFacts, _ context: Int) -> Int {
    guard let ropes = facts.spec.ropes, let size = facts.spec.headDim else { return 0 }
    return ropes.count * context * size * 2 * 4
}

/// What the planner set aside at export for values outside delegates, all of it touched at load.
private func arena(_ facts: ModelFacts, _ context: Int, _ tokens: Int) -> Interval {
    let stream = 4 * Double(tokens * facts.spec.hiddenSize)
    var likely = PteConstants.arenaCustom * stream
    if facts.attention == "core", let heads = facts.spec.numAttentionHeads {
        likely = PteConstants.arenaCore * stream + 4 * Double(tokens * context) * Double(2 * heads + 1)
    }
    return Interval(0.6 * likely, likely, 1.3 * likely)
}

/// What XNNPACK sets aside for the widest delegate, once for all of them.
private func workspace(_ facts: ModelFacts, _ tokens: Int) -> Interval {
    let likely = 4 * Double(tokens) * Double(2 * facts.spec.intermediateSize + facts.spec.hiddenSize)
    return Interval(0.5 * likely, likely, 1.5 * likely)
}
