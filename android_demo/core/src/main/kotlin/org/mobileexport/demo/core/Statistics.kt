package org.mobileexport.demo.core

/** A quantity over runs. */
data class Spread(val median: Double, val least: Double, val largest: Double)

/** Resident MiB above what the process held before it touched the model, medians over runs; the last two of the whole process. */
data class Memory(
    val dirtyAfterLoadMib: Double,
    val dirtyAfterInitMib: Double,
    val dirtyAtEndMib: Double,
    val cleanAtEndMib: Double,
    val pssAtEndMib: Double,
    val peakRssMib: Double,
)

/** What runs at one number of threads gave together: `by_threads` of profile.json (mobile_export/measure/profile.py). */
data class AtThreads(
    val threads: Int,
    val loadS: Spread,
    val initS: Spread,
    val firstTokenS: Spread,
    val prefillTokensPerS: Spread,
    val decodeTokensPerS: Spread,
    val slowTokenS: Spread,
    val memory: Memory,
)

/** The middle value; of an even number of them the mean of the two in the middle. */
fun median(values: List<Double>): Double {
    val sorted = values.sorted()
    val half = sorted.size / 2
    return if (sorted.size % 2 == 1) sorted[half] else (sorted[half - 1] + sorted[half]) / 2
}

fun spread(values: List<Double>) = Spread(median(values), values.min(), values.max())

/** Summarises runs that have prompts and single tokens, as mobile_export/measure/series.py does. */
fun summary(runs: List<Measurement>): AtThreads {
    fun over(value: (Measurement) -> Double) = spread(runs.map(value))

    fun mib(kib: (Measurement) -> Long) = median(runs.map { kib(it).toDouble() }) / 1024
    return AtThreads(
        threads = runs.first().threads,
        loadS = over { it.loadS },
        initS = over { it.initS },
        firstTokenS = over { it.firstTokenS },
        prefillTokensPerS = over { it.promptTokens / median(it.prefillS) },
        decodeTokensPerS = over { 1 / median(it.decodeS.flatten()) },
        slowTokenS = over { run -> run.decodeS.flatten().sorted().let { it[(0.99 * it.size).toInt()] } },
        memory =
        Memory(
            dirtyAfterLoadMib = mib { it.afterLoad.rssAnonKib - it.atStart.rssAnonKib },
            dirtyAfterInitMib = mib { it.afterInit.rssAnonKib - it.atStart.rssAnonKib },
            dirtyAtEndMib = mib { it.atEnd.rssAnonKib - it.atStart.rssAnonKib },
            cleanAtEndMib = mib { it.atEnd.rssFileKib - it.atStart.rssFileKib },
            pssAtEndMib = mib { it.atEnd.pssKib },
            peakRssMib = mib { it.peakRssKib },
        ),
    )
}
