package org.mobileexport.demo.core

/**
 * An answer. [ended]: by itself, not stopped and not for want of room. [tokensPerS]: null where it was too short to tell.
 * [used]: tokens in the cache now.
 */
data class Said(val text: String, val ended: Boolean, val firstTokenS: Double, val tokensPerS: Double?, val used: Long)

/**
 * What ExecuTorch's text runner said: [pieces] of text, and [stats], JSON as its stats.h writes it.
 *
 * The last piece of an answer that ended by itself is the end token's own text, which nobody wants to read. [before]: tokens in
 * the cache before it.
 */
fun said(pieces: List<String>, stats: String, firstTokenS: Double, stopped: Boolean, before: Long, maxContext: Int): Said {
    val numbers =
        try {
            parseJson(stats) as Map<*, *>
        } catch (problem: JsonProblem) {
            throw Refusal(Kind.CRASH, "the runtime's statistics are not JSON: ${problem.message}")
        }
    val prompt = numbers["prompt_tokens"] as? Long ?: 0
    val generated = numbers["generated_tokens"] as? Long ?: 0
    val used = before + prompt + generated
    val ended = !stopped && used < maxContext - 1
    return Said(
        text = (if (ended) pieces.dropLast(1) else pieces).joinToString(""),
        ended = ended,
        firstTokenS = firstTokenS,
        tokensPerS = (numbers["decode_token_per_sec"] as? Number)?.toDouble()?.takeIf { generated > 1 },
        used = used,
    )
}
