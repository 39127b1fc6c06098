package org.mobileexport.demo.core

/**
 * What is resident, from the text of /proc/self/smaps_rollup (proc(5)), which walks the pages; counters of status lag behind.
 *
 * The same lines mobile_export/measure/runner/process_memory.h reads, so that an app's numbers compare with a runner's.
 */
fun residentOf(rollup: String): Resident {
    val anonymous = kib(rollup, "Anonymous")
    return Resident(anonymous, kib(rollup, "Rss") - anonymous, kib(rollup, "Pss"))
}

/** The most that was ever resident, KiB, from the text of /proc/self/status. */
fun peakRssKib(status: String): Long = kib(status, "VmHWM")

private fun kib(lines: String, key: String): Long = lines.lineSequence().firstOrNull { it.startsWith("$key:") }
    ?.removePrefix("$key:")?.trim()?.removeSuffix("kB")?.trim()?.toLongOrNull()
    ?: throw Refusal(Kind.REFUSED, "this phone's kernel does not tell $key of a process")
