package org.mobileexport.demo.core

/** Resident memory of a process, KiB: anonymous pages, pages of files, and all of them with shared ones counted in part. */
data class Resident(val rssAnonKib: Long, val rssFileKib: Long, val pssKib: Long)

/** What the model made of fixed tokens: the first values, the place of the largest, and the sum of all [count]. */
data class Logits(val tokens: List<Long>, val count: Int, val argmax: Int, val sum: Double, val values: List<Double>)

/**
 * What one process measured; mobile_export/measure/measurement.py says what each field is. Seconds are wall time.
 *
 * [firstTokenS] is the first prompt ever, [prefillS] the prompt again, once a sequence, [decodeS] the single tokens after it.
 */
data class Measurement(
    val runtime: String,
    val threads: Int,
    val backends: List<String>,
    val loadS: Double,
    val initS: Double,
    val firstTokenS: Double,
    val promptTokens: Int,
    val prefillS: List<Double>,
    val decodeS: List<List<Double>>,
    val atStart: Resident,
    val afterLoad: Resident,
    val afterInit: Resident,
    val atEnd: Resident,
    val peakRssKib: Long,
    val logits: Logits?,
) {
    /** The line a result file holds. */
    fun json(): String = jsonText(
        linkedMapOf(
            "runtime" to runtime,
            "threads" to threads,
            "backends" to backends,
            "load_s" to loadS,
            "init_s" to initS,
            "first_token_s" to firstTokenS,
            "prompt_tokens" to promptTokens,
            "prefill_s" to prefillS,
            "decode_s" to decodeS,
            "at_start" to atStart.plain(),
            "after_load" to afterLoad.plain(),
            "after_init" to afterInit.plain(),
            "at_end" to atEnd.plain(),
            "peak_rss_kib" to peakRssKib,
            "logits" to logits?.plain(),
        ),
    )
}

private fun Resident.plain() = linkedMapOf("rss_anon_kib" to rssAnonKib, "rss_file_kib" to rssFileKib, "pss_kib" to pssKib)

private fun Logits.plain() =
    linkedMapOf("tokens" to tokens, "count" to count, "argmax" to argmax, "sum" to sum, "values" to values)
