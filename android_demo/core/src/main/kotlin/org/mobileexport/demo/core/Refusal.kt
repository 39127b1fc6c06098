package org.mobileexport.demo.core

/** What went wrong, as `profile --runner app` tells kinds apart. [word] stands in the result file. */
enum class Kind(val word: String) {
    /** What was asked for contradicts itself, or names what is not there. */
    USAGE("usage"),

    /** The artifact, or the runtime that reads it, says no. */
    REFUSED("refused"),

    /** There is no memory left. */
    MEMORY("memory"),

    /** A bug, of ours or of the runtime. */
    CRASH("crash"),
}

/** Something a person can act on: [what] is one line, for the screen and for the result file. */
class Refusal(val kind: Kind, val what: String) : Exception(what)

/** [error] as a refusal: itself, or what it most likely means. */
fun refusalOf(error: Throwable): Refusal = when (error) {
    is Refusal -> error
    is OutOfMemoryError -> Refusal(Kind.MEMORY, oneLine("out of memory: ${error.message}"))
    else -> Refusal(Kind.CRASH, oneLine("${error.javaClass.simpleName}: ${error.message}"))
}

/** [text] on one line, cut where it is longer than a line can be. */
fun oneLine(text: String): String = text.split(Regex("\\s+")).joinToString(" ").trim().take(LONGEST_LINE)

private const val LONGEST_LINE = 300
