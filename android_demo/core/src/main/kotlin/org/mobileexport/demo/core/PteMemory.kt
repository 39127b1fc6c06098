package org.mobileexport.demo.core

/** When a term is resident: always once it is there, or only while loading or running; those two never add up. */
enum class When(val word: String) {
    ALWAYS("always"),
    LOAD("load"),
    RUN("run"),
}

/** One reason for resident memory, in bytes: [dirty] pages a phone kills for, [clean] ones it drops and reads again. */
data class Term(val name: String, val dirty: Interval = NOTHING, val clean: Interval = NOTHING, val at: When = When.ALWAYS)

/** What a process keeps resident for a model. Bytes. */
data class MemoryEstimate(val terms: List<Term>) {
    /** Most resident at any moment, dirty and clean. */
    val peak get() = most { it.dirty + it.clean }

    /** Most dirty at any moment. */
    val peakDirty get() = most { it.dirty }

    private fun most(of: (Term) -> Interval): Interval {
        val moments = listOf(When.LOAD, When.RUN)
        return largest(moments.map { moment -> total(terms.filter { it.at == When.ALWAYS || it.at == moment }.map(of)) })
    }
}

/**
 * What ExecuTorch keeps resident for a .pte: the terms of mobile_export/budget/pte_memory.py, to the byte, which says where each
 * constant was measured. [context]: KV rows. [promptChunk]: most tokens in one call. [packedFile]: packed weights are mapped.
 */
fun pteMemory(
    facts: ModelFacts,
    context: Long = facts.maxContext,
    promptChunk: Long = facts.promptChunk,
    packedFile: Boolean = false,
): MemoryEstimate {
    val packed = total(facts.multiplied.map(::packed)) + packedNorms(facts)
    val source = facts.multiplied.maxOfOrNull { it.payloadBytes } ?: 0
    val terms =
        listOf(
            Term("process", mib(0.3, 0.35, 8.0), mib(3.0, 4.4, 15.0)),
            Term("runtime", runtime(facts), mib(0.5, 0.8, 2.0)),
            Term("code", mib(0.5, 1.6, 3.0), mib(3.0, 4.8, 8.0), When.RUN),
            Term("packed weights", if (packedFile) NOTHING else packed, if (packedFile) packed else NOTHING),
            Term("table", clean = exactly(facts.gathered.sumOf { it.payloadBytes } + rotary(facts, context))),
            Term("graph", clean = exactly(facts.graphBytes)),
            Term("KV cache", exactly(facts.kvBytes(context) + facts.stateBytes)),
            Term("arena", arena(facts, context, promptChunk)),
            Term("workspace", workspace(facts, promptChunk), at = When.RUN),
            Term("logits", exactly(FLOAT * facts.vocabSize), at = When.RUN),
        )
    val whilePacking = Term("source", clean = exactly(source), at = When.LOAD)
    return MemoryEstimate(if (packedFile || facts.tied) terms else terms + whilePacking)
}

private const val MIB = 1048576.0
private const val FLOAT = 4L // bytes
private const val ROW_BYTES = 8 // XNNPACK keeps a float32 sum and a bias a row beside codes and scales
private const val FLOAT_ROW_BYTES = 4 // the bias alone
private const val KERNEL_ROWS = 16 // rows of a packed tile: a norm's mean is a product with one row, padded to it
private const val RUNTIME_BYTES = 0.12 * MIB
private const val DELEGATE_BYTES = 0.031 * MIB // one delegate's operators and tensors
private const val EXECUTION_BYTES = 0.006 * MIB // instructions and values of one execution
private const val ARENA_CUSTOM = 8.0 // float32 rows of hidden_size the planner keeps for a token outside delegates
private const val ARENA_CORE = 16.0 / 3 // with plain operators, beside scores and mask

private fun packed(matrix: Matrix): Interval {
    val likely = matrix.payloadBytes + (if (matrix.bits == 32) FLOAT_ROW_BYTES else ROW_BYTES) * matrix.rows.toDouble()
    return Interval(matrix.payloadBytes.toDouble(), likely, 1.02 * likely)
}

private fun packedNorms(facts: ModelFacts): Interval {
    val likely = (2.0 * facts.storedBlocks + 1) * KERNEL_ROWS * FLOAT * facts.hiddenSize
    return Interval(minOf(facts.floatBytes.toDouble(), likely), likely, likely + facts.floatBytes)
}

private fun runtime(facts: ModelFacts): Interval {
    val delegates = 2 * facts.storedBlocks + 1
    return around(RUNTIME_BYTES + DELEGATE_BYTES * delegates + EXECUTION_BYTES * facts.executions, 0.5, 1.5)
}

private fun rotary(facts: ModelFacts, context: Long) = facts.ropes * context * facts.headDim * 2 * FLOAT

private fun arena(facts: ModelFacts, context: Long, tokens: Long): Interval {
    val stream = (FLOAT * tokens * facts.hiddenSize).toDouble()
    val plain = facts.attention == "core" && facts.isDecoder
    val scores = FLOAT * tokens * context * (2 * facts.numAttentionHeads + 1)
    return around(if (plain) ARENA_CORE * stream + scores else ARENA_CUSTOM * stream, 0.6, 1.3)
}

private fun workspace(facts: ModelFacts, tokens: Long) =
    around((FLOAT * tokens * (2 * facts.intermediateSize + facts.hiddenSize)).toDouble(), 0.5, 1.5)

private fun around(likely: Double, low: Double, high: Double) = Interval(low * likely, likely, high * likely)

private fun mib(low: Double, likely: Double, high: Double) = Interval(low, likely, high) * MIB
