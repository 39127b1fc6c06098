/// What Core ML would keep resident for a package: mobile_export/budget/coreml_memory.py says why the intervals are wide.
func coreMlMemory(_ facts: ModelFacts, context: Int, promptChunk: Int) -> [Term] {
    let weights = Double(facts.matrices.reduce(0) { $0 + $1.coreMlBytes } + facts.floatBytes / 2)
    let unpacked = Double(2 * facts.parameters)  // float16, if a unit does not compute on codes
    let row = Double(2 * facts.spec.vocabSize)
    let values = 2 * Double(promptChunk) * Double(3 * facts.spec.intermediateSize + 4 * facts.spec.hiddenSize)
    let logits = Interval(row, row, Double(promptChunk) * row)
    return [
        Term("process", dirty: mib(4, 10, 40), clean: mib(10, 20, 60), why: "Core ML; not measured"),
        Term("weights", clean: Interval(exactly: weights), why: "codes and float16 scales; mapped"),
        Term("unpacked weights", dirty: Interval(0, 0, max(unpacked, weights)), why: "if a compute unit does not take codes"),
        kvTerm(facts, context),
        Term("activations", dirty: Interval(values / 2, values, 4 * values), why: "of \(promptChunk) tokens in one call"),
        Term("logits", dirty: logits, why: "float16; a stock package gives them for every token of a call"),
    ]
}
