package org.mobileexport.demo.core

/**
 * What a benchmark is to do, from the extras of an intent: the options of mobile_export/measure/measurement.py `Job.arguments`
 * that an app can honour, with the same names and defaults.
 */
data class Job(
    val model: String,
    val threads: Int,
    val promptTokens: Int,
    val newTokens: Int,
    val sequences: Int,
    val warmUp: Int,
    val logitsOf: List<Long>,
    val logitsValues: Int,
)

/** The name of a run, which the result file has. Whoever sends the intent chooses it, so it is held to be a plain file name. */
fun runOf(extras: Map<String, String>): String {
    val run = extras[RUN] ?: refuse("run: name the run")
    if (!Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,63}").matches(run)) refuse("run: 1 to 64 letters, digits, '.', '_' and '-'")
    return run
}

/** Reads the extras; one that no job has is refused, not left out. */
fun jobOf(extras: Map<String, String>): Job {
    (extras.keys - NAMES).firstOrNull()?.let { refuse("$it: the app has no such option") }
    val model = extras["model"] ?: refuse("model: name a .pte file")
    return Job(
        model = model,
        threads = whole(extras, "threads", 1, 1..MOST_THREADS),
        promptTokens = whole(extras, "prompt-tokens", 128, 1..MOST),
        newTokens = whole(extras, "new-tokens", 64),
        sequences = whole(extras, "sequences", 1),
        warmUp = whole(extras, "warm-up", 1),
        logitsOf = extras["logits-of"]?.split(',')?.map { number("logits-of", it).toLong() }.orEmpty(),
        logitsValues = whole(extras, "logits-values", 8),
    )
}

private const val RUN = "run"
private const val MOST_THREADS = 64
private const val MOST = 1 shl 20 // more than any context
private val NAMES =
    setOf(RUN, "model", "threads", "prompt-tokens", "new-tokens", "sequences", "warm-up", "logits-of", "logits-values")

private fun whole(extras: Map<String, String>, name: String, otherwise: Int, range: IntRange = 0..MOST): Int {
    val value = extras[name]?.let { number(name, it) } ?: otherwise
    if (value !in range) refuse("$name: from ${range.first} to ${range.last}")
    return value
}

private fun number(name: String, text: String): Int =
    (if (text.all { it in '0'..'9' }) text.toIntOrNull() else null) ?: refuse("$name $text: no number from 0 on")

private fun refuse(what: String): Nothing = throw Refusal(Kind.USAGE, what)
