package org.mobileexport.demo.core

/** A quantity that is not known exactly: least, likely, most, all in one unit (mobile_export/budget/interval.py). */
data class Interval(val low: Double, val likely: Double, val high: Double) {
    init {
        require(likely in low..high) { "$this" }
    }

    /** The sum, each end with its like. */
    operator fun plus(other: Interval) = Interval(low + other.low, likely + other.likely, high + other.high)

    /** The difference: most of it where most is there and least is taken. */
    operator fun minus(other: Interval) = Interval(low - other.high, likely - other.likely, high - other.low)

    /** Scaled by a factor of 0 or more. */
    operator fun times(factor: Double) = Interval(low * factor, likely * factor, high * factor)
}

val NOTHING = Interval(0.0, 0.0, 0.0)

/** A quantity that is known. */
fun exactly(value: Double) = Interval(value, value, value)

fun exactly(value: Long) = exactly(value.toDouble())

/** The sum of all parts. */
fun total(parts: List<Interval>) = parts.fold(NOTHING, Interval::plus)

/** The largest, end by end. */
fun largest(parts: List<Interval>) = Interval(parts.maxOf { it.low }, parts.maxOf { it.likely }, parts.maxOf { it.high })
