package org.mobileexport.demo.core

/** A weight matrix as it is stored. [bits]: 4, 8 or 32. [groupSize]: inputs that share a scale; null for a scale a row. */
data class Matrix(val name: String, val rows: Long, val columns: Long, val bits: Int, val groupSize: Int?) {
    /** Codes and scales as a kernel reads them. */
    val payloadBytes: Long
        get() {
            val codes = rows * columns * bits / 8
            return codes + (groupSize?.let { rows * columns / it * 2 } ?: if (bits == 32) 0 else rows * 4)
        }
}

/** How many slots of the cache attend [reach] positions back; null: to all there are. */
data class Slots(val reach: Long?, val count: Int)

/**
 * What the memory formula needs to know of a .pte: mobile_export/budget/facts.py, from the same manifest.
 *
 * [maxContext]: KV rows. [promptChunk]: most tokens in one call. [floatBytes]: norms and biases. [graphBytes]: the file's graph.
 */
data class ModelFacts(
    val vocabSize: Long,
    val hiddenSize: Long,
    val intermediateSize: Long,
    val numAttentionHeads: Long,
    val numKeyValueHeads: Long,
    val headDim: Long,
    val ropes: Int,
    val isDecoder: Boolean,
    val matrices: List<Matrix>,
    val executions: Int,
    val storedBlocks: Int,
    val tied: Boolean,
    val slots: List<Slots>,
    val kvDtype: String,
    val stateBytes: Long,
    val maxContext: Long,
    val promptChunk: Long,
    val floatBytes: Long,
    val graphBytes: Long,
    val attention: String,
) {
    /** The matrices something is multiplied with, a tied table among them; others are only gathered from. */
    val multiplied: List<Matrix> get() = matrices.filter { it.name !in GATHERED || (it.name == EMBEDDING && tied) }

    /** The tables rows are gathered from. */
    val gathered: List<Matrix> get() = matrices.filter { it.name in GATHERED }

    /** Bytes of keys and values over all slots, with so many rows in each; a windowed slot keeps what it needs. */
    fun kvBytes(context: Long): Long {
        val rows = slots.sumOf { it.count * minOf(context, it.reach?.let { reach -> reach + promptChunk - 1 } ?: context) }
        val head = headDim * VALUE_BYTES.getValue(kvDtype) + if (kvDtype == "int8") INT8_ROW_EXTRA else 0
        return 2 * rows * numKeyValueHeads * head
    }
}

private const val EMBEDDING = "embedding.weight"
private const val HEAD = "head.linear.weight"
private const val POSITIONS = "positions.weight"
private val GATHERED = setOf(EMBEDDING, POSITIONS)
private val VALUE_BYTES = mapOf("float32" to 4L, "float16" to 2L, "int8" to 1L)
private const val INT8_ROW_EXTRA = 5L // a float32 scale and an int8 zero point beside every row of a head
private val PRECISION = Regex("float32|([48])-bit, (?:group ([0-9]+)|per channel)")

/** The facts of a manifest of format "pte"; throws a [Refusal] where it contradicts itself. */
fun factsOf(manifest: Fields): ModelFacts {
    val spec = manifest.fields("spec")
    val sharing = manifest.fields("sharing")
    val cache = manifest.fields("kv_cache")
    val pte = manifest.fields("pte")
    val sizes = manifest.objects("parts").associate { it.text("name") to it.whole("bytes") }
    val schedule = sharing.wholes("schedule").map { it.toInt() }
    val isDecoder = spec.isNull("attention_hidden_size")
    val kinds = if (isDecoder) spec.objects("blocks") else emptyList()
    val stored = sharing.wholes("blocks").map { it.toInt() }
    if (schedule.toSet() != stored.indices.toSet()) refuse("sharing: the schedule does not run the stored blocks")
    if (isDecoder && stored.any { it !in kinds.indices }) refuse("sharing: a stored block is none of the spec's")
    if (cache.text("dtype") !in VALUE_BYTES) refuse("kv_cache: dtype ${cache.text("dtype")} is unknown")
    val facts =
        ModelFacts(
            vocabSize = spec.whole("vocab_size"),
            hiddenSize = spec.whole("hidden_size"),
            intermediateSize = spec.whole("intermediate_size"),
            numAttentionHeads = if (isDecoder) spec.whole("num_attention_heads") else 0,
            numKeyValueHeads = if (isDecoder) spec.whole("num_key_value_heads") else 0,
            headDim = if (isDecoder) spec.whole("head_dim") else 0,
            ropes = if (isDecoder) spec.list("ropes").size else 0,
            isDecoder = isDecoder,
            matrices = manifest.fields("matrices").allTexts().map { (name, words) -> matrix(name, words, spec, kinds) },
            executions = schedule.size,
            storedBlocks = stored.size,
            tied = sharing.flag("tied"),
            slots = if (isDecoder) slots(schedule.map { kinds[stored[it]] }) else emptyList(),
            kvDtype = cache.text("dtype"),
            stateBytes = cache.whole("state_bytes"),
            maxContext = manifest.whole("max_context"),
            promptChunk = pte.whole("max_prompt"),
            floatBytes = sizes["norms"] ?: 0,
            graphBytes = sizes["graph"] ?: 0,
            attention = pte.text("attention"),
        )
    val said = cache.whole("bytes_at_max_context")
    val known = facts.kvBytes(facts.maxContext)
    if (said != known) refuse("kv_cache: bytes_at_max_context is $said, its spec gives $known")
    return facts
}

/** How far the attention of each execution reaches, equal ones counted. */
private fun slots(executions: List<Fields>): List<Slots> = executions.filter { it.text("mixer") == "attention" }
    .groupingBy { listOfNotNull(it.wholeOrNull("window"), it.wholeOrNull("chunk")).minOrNull() }
    .eachCount().map { (reach, count) -> Slots(reach, count) }

private fun matrix(name: String, words: String, spec: Fields, kinds: List<Fields>): Matrix {
    val (bits, group) = PRECISION.matchEntire(words)?.destructured ?: refuse("matrices: $name is $words")
    val (rows, columns) = shape(name, spec, kinds) ?: refuse("matrices: no graph has $name")
    return Matrix(name, rows, columns, bits.ifEmpty { "32" }.toInt(), group.ifEmpty { null }?.toInt())
}

/** (out_features, in_features) of a matrix by its name (mobile_export/budget/matrix_shapes.py); null for a name no graph has. */
private fun shape(name: String, spec: Fields, kinds: List<Fields>): Pair<Long, Long>? {
    val hidden = spec.whole("hidden_size")
    val wide = spec.whole("intermediate_size")
    val table = if (spec.isNull("embedding_size")) hidden else spec.whole("embedding_size")
    val inBlock = Regex("blocks\\.([0-9]+)\\.(.+?)(\\.weight)?").matchEntire(name)
    val place = inBlock?.groupValues?.get(2)
    if (name == EMBEDDING || name == HEAD) return spec.whole("vocab_size") to table
    if (!spec.isNull("attention_hidden_size")) {
        val inner = spec.whole("attention_hidden_size")
        return when (place) {
            "attention.key", "attention.value", "attention.receptance" -> inner to hidden
            "attention.output" -> hidden to inner
            "ffn.key" -> wide to hidden
            "ffn.receptance" -> hidden to hidden
            "ffn.value" -> hidden to wide
            else -> null
        }
    }
    val attended = spec.whole("num_attention_heads") * spec.whole("head_dim")
    val isConv = inBlock != null && kinds.getOrNull(inBlock.groupValues[1].toInt())?.text("mixer") == "conv"
    return when (place ?: name) {
        POSITIONS -> spec.whole("learned_positions") to hidden
        "embedding.project.weight" -> hidden to table
        "head.project.weight" -> table to hidden
        "attention.qkv" -> attended + 2 * spec.whole("num_key_value_heads") * spec.whole("head_dim") to hidden
        "conv.in" -> 3 * hidden to hidden
        "ffn.o" -> hidden to if (isConv) hidden else attended
        "ffn.gate", "ffn.up" -> wide to hidden
        "ffn.down" -> hidden to wide
        else -> null
    }
}

private fun refuse(what: String): Nothing = throw Refusal(Kind.REFUSED, "$MANIFEST: $what; export the artifact again")
