package org.mobileexport.demo.core

import java.math.BigDecimal
import java.math.RoundingMode
import java.util.Locale

/** Whether a limit is kept, whatever is not known. [word] as `mobile-export check` says it; the worst comes first. */
enum class Outcome(val word: String) {
    DOES_NOT_FIT("does not fit"),
    UNCERTAIN("uncertain"),
    FITS("fits"),
}

/** The share of its memory an app should stay within (MobileLLM, arXiv:2402.14905, introduction). */
const val USUAL_SHARE = 0.1

/**
 * What a phone has, in bytes. [share]: of [dram], what is allowed; [maxMemory]: instead of it. [appLimit]: most dirty memory the
 * system grants an app. [reserve]: what the system and other apps keep. Null where nobody says.
 */
data class Device(
    val dram: Interval,
    val share: Double = USUAL_SHARE,
    val maxMemory: Long? = null,
    val appLimit: Interval? = null,
    val reserve: Interval? = null,
)

/** One limit: what is needed, what is allowed, and whether the one lies within the other. */
data class Answer(val limit: String, val needed: Interval, val allowed: Interval) {
    val outcome: Outcome
        get() =
            when {
                needed.high <= allowed.low -> Outcome.FITS
                needed.low > allowed.high -> Outcome.DOES_NOT_FIT
                else -> Outcome.UNCERTAIN
            }

    /** The limit with what is needed for it, in words. */
    val reason: String get() = "$limit ${mib(needed)} MiB, ${mib(allowed)} allowed"
}

/** Holds an estimate against a phone, limit by limit, as mobile_export/budget/verdict.py does. */
fun judge(memory: MemoryEstimate, device: Device): List<Answer> = listOfNotNull(
    Answer("memory", memory.peak, device.maxMemory?.let(::exactly) ?: (device.dram * device.share)),
    device.appLimit?.let { Answer("app limit", memory.peakDirty, it) },
    device.reserve?.let { Answer("left by the system", memory.peak, device.dram - it) },
)

/** The worst of the answers. */
fun worst(answers: List<Answer>): Outcome = answers.minOf { it.outcome }

/** "182 (160 to 210)", or one number where nothing is unknown. */
private fun mib(bytes: Interval): String {
    val (low, likely, high) = listOf(bytes.low, bytes.likely, bytes.high).map { whole(it / (1 shl 20)) }
    return if (low == likely && likely == high) likely else "$likely ($low to $high)"
}

/** Rounded as Python rounds, half to even. */
private fun whole(value: Double): String =
    "%,d".format(Locale.ROOT, BigDecimal(value).setScale(0, RoundingMode.HALF_EVEN).toLong())
