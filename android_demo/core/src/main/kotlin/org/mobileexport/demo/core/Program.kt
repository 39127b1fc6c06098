package org.mobileexport.demo.core

/**
 * A .pte in a runtime. Calls come in this order: [load], [constant], [initialise], then [run] with [logits] as often as wanted.
 *
 * Every one may throw a [Refusal].
 */
interface Program : AutoCloseable {
    /** The runtime with its version, and how it was called: "executorch 1.5.1, Android". */
    val runtime: String

    /** Names of the backends the runtime has. */
    val backends: List<String>

    /** Maps the file and reads its header. */
    fun load()

    /** What a constant method gives, null where the program has no such method. */
    fun constant(method: String): Long?

    /** Packs the weights and plans the memory of `forward`. */
    fun initialise()

    /** Feeds tokens from a position on; a sequence begins wherever [start] is 0. */
    fun run(tokens: LongArray, start: Long)

    /** Logits of the last token of the last [run]. */
    fun logits(): FloatArray

    /** What the process keeps resident now. */
    fun resident(): Resident

    /** The most the process ever kept resident, KiB. */
    fun peakRssKib(): Long
}
