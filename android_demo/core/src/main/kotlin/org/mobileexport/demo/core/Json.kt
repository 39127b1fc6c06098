package org.mobileexport.demo.core

import java.math.BigDecimal
import java.math.MathContext
import java.math.RoundingMode
import java.util.Locale

/** Text that is no JSON, or none we read. */
class JsonProblem(what: String) : Exception(what)

/**
 * The value of a JSON text: Map, List, String, Long, Double, Boolean or null.
 *
 * Strict as RFC 8259 is, and stricter: a key twice in an object is a problem, and so is an integer beyond 64 bits.
 */
fun parseJson(text: String): Any? = JsonReader(text).whole()

/** A value as JSON on one line, as Python's json.dumps writes it: keys in order, ASCII alone, floats by [floatText]. */
fun jsonText(value: Any?): String = when (value) {
    null -> "null"
    is Boolean, is Int, is Long -> value.toString()
    is Double -> floatText(value)
    is String -> quoted(value)
    is List<*> -> value.joinToString(", ", "[", "]") { jsonText(it) }
    is Map<*, *> -> value.entries.joinToString(", ", "{", "}") { "${quoted(it.key as String)}: ${jsonText(it.value)}" }
    else -> throw IllegalArgumentException("${value.javaClass}: has no JSON")
}

/**
 * A finite number as Python's repr writes it: the fewest digits that read back as [value], of these the nearest.
 *
 * `Double.toString` is not always that: before Java 19 it may write a digit more, and what Android does depends on the phone.
 */
fun floatText(value: Double): String {
    require(value.isFinite()) { "$value: has no JSON" }
    if (value == 0.0) return if (1 / value < 0) "-0.0" else "0.0"
    val shortest = shortest(value)
    val digits = shortest.unscaledValue().abs().toString()
    val sign = if (value < 0) "-" else ""
    val exponent = digits.length - 1 - shortest.scale()
    if (exponent !in SMALLEST_PLAIN..LARGEST_PLAIN) {
        val tail = if (digits.length > 1) "." + digits.substring(1) else ""
        return "$sign${digits[0]}${tail}e%+03d".format(Locale.ROOT, exponent)
    }
    val plain = shortest.abs().toPlainString()
    return sign + if ('.' in plain) plain else "$plain.0"
}

private const val SMALLEST_PLAIN = -4
private const val LARGEST_PLAIN = 15
private const val MOST_DIGITS = 17

private fun shortest(value: Double): BigDecimal {
    val exact = BigDecimal(value)
    for (digits in 1..MOST_DIGITS) {
        // The nearest first. At a power of two the gap below is half the one above, and only a neighbour may read back.
        for (rounding in listOf(RoundingMode.HALF_EVEN, RoundingMode.FLOOR, RoundingMode.CEILING)) {
            val rounded = exact.round(MathContext(digits, rounding))
            if (rounded.toDouble() == value) return rounded.stripTrailingZeros()
        }
    }
    return exact
}

private fun quoted(text: String): String = text.toCharArray().joinToString("", "\"", "\"") {
    when (it) {
        '"' -> "\\\""
        '\\' -> "\\\\"
        '\n' -> "\\n"
        '\r' -> "\\r"
        '\t' -> "\\t"
        '\b' -> "\\b"
        '\u000c' -> "\\f"
        in ' '..'~' -> it.toString()
        else -> "\\u%04x".format(Locale.ROOT, it.code)
    }
}

private class JsonReader(private val text: String) {
    private var at = 0

    fun whole(): Any? {
        val value = value(DEEPEST)
        space()
        if (at < text.length) fail("more after the end")
        return value
    }

    private fun value(deeper: Int): Any? {
        if (deeper == 0) fail("nested too deep")
        space()
        return when (val first = peek()) {
            '{' -> members(deeper)
            '[' -> elements(deeper)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> if (first == '-' || first in '0'..'9') number() else fail("no value")
        }
    }

    private fun members(deeper: Int): Map<String, Any?> {
        val members = LinkedHashMap<String, Any?>()
        separated('}') {
            space()
            val key = string()
            space()
            expect(':')
            if (members.containsKey(key)) fail("$key twice")
            members[key] = value(deeper - 1)
        }
        return members
    }

    private fun elements(deeper: Int): List<Any?> {
        val elements = ArrayList<Any?>()
        separated(']') { elements.add(value(deeper - 1)) }
        return elements
    }

    private fun separated(end: Char, one: () -> Unit) {
        at++
        space()
        if (peek() == end) {
            at++
            return
        }
        while (true) {
            one()
            space()
            if (peek() == end) break
            expect(',')
        }
        at++
    }

    private fun string(): String {
        expect('"')
        val found = StringBuilder()
        while (peek() != '"') {
            val next = text[at++]
            if (next < ' ') fail("a control character in a string")
            found.append(if (next == '\\') escaped() else next)
        }
        at++
        return found.toString()
    }

    private fun escaped(): Char = when (val next = peek().also { at++ }) {
        '"', '\\', '/' -> next
        'n' -> '\n'
        'r' -> '\r'
        't' -> '\t'
        'b' -> '\b'
        'f' -> '\u000c'
        'u' -> {
            val digits = text.substring(at, minOf(at + HEX_DIGITS, text.length))
            if (!HEX.matches(digits)) fail("no \\u and four digits")
            at += HEX_DIGITS
            digits.toInt(16).toChar()
        }
        else -> fail("no such escape")
    }

    private fun number(): Any {
        val found = NUMBER.matchAt(text, at) ?: fail("no number")
        at = found.range.last + 1
        if (found.groupValues[1].isEmpty()) return found.value.toLongOrNull() ?: fail("an integer beyond 64 bits")
        return found.value.toDouble().also { if (!it.isFinite()) fail("a number beyond any double") }
    }

    private fun <T> word(word: String, meaning: T): T {
        if (!text.startsWith(word, at)) fail("no value")
        at += word.length
        return meaning
    }

    private fun space() {
        while (at < text.length && text[at] in " \t\r\n") at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("the text ends")

    private fun expect(wanted: Char) {
        if (peek() != wanted) fail("'$wanted' is missing")
        at++
    }

    private fun fail(what: String): Nothing {
        val before = text.take(at)
        throw JsonProblem("line ${before.count { it == '\n' } + 1}, column ${at - before.lastIndexOf('\n')}: $what")
    }

    companion object {
        const val DEEPEST = 64
        const val HEX_DIGITS = 4
        val HEX = Regex("[0-9a-fA-F]{4}")
        val NUMBER = Regex("-?(?:0|[1-9][0-9]*)((?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
    }
}
