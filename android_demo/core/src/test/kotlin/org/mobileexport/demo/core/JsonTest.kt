package org.mobileexport.demo.core

import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class JsonTest {
    @Test
    fun valuesComeBackAsTheyWere() {
        val values =
            listOf(null, true, false, 0L, -7L, Long.MAX_VALUE, 0.5, -1e300, "", "\"\\\n\t\u0000é\uD83D\uDE00", emptyList<Any>())
        val whole = linkedMapOf("b" to values, "a" to mapOf("" to 1L))
        assertEquals<Any?>(whole, parseJson(jsonText(whole)))
        assertEquals<Any?>(whole, parseJson(" \n" + jsonText(whole).replace(", ", "\t,\r\n ") + " "))
        assertTrue(jsonText(whole).all { it in ' '..'~' })
    }

    @Test
    fun whatIsNoJsonIsRefusedWithItsPlace() {
        val numbers = "01 1. .5 +1 - 1e NaN Infinity 9223372036854775808 1e999".split(' ')
        val texts = listOf("\"", "\"\n\"", "\"\\x\"", "\"\\u12g4\"", "\"\\u12")
        val objects = listOf("{", "{\"a\":1,}", "{\"a\" 1}", "{a:1}", "{\"a\":1,\"a\":2}")
        val wrong = numbers + texts + objects + listOf("", "[1,]", "[1 2]", "1 2", "nul", "truex", "[".repeat(100))
        for (text in wrong) assertFailsWith<JsonProblem>(text) { parseJson(text) }
        assertEquals("line 2, column 5: a twice", assertFailsWith<JsonProblem> { parseJson("{\"a\":1,\n\"a\":2}") }.message)
    }

    @Test
    fun floatsAreWrittenAsPythonWritesThem() {
        val written =
            mapOf(
                0.0 to "0.0",
                -0.0 to "-0.0",
                1.0 to "1.0",
                -2.5 to "-2.5",
                0.1 to "0.1",
                0.1f.toDouble() to "0.10000000149011612",
                1e-4 to "0.0001",
                1e-5 to "1e-05",
                1.5e-7 to "1.5e-07",
                9999999999999998.0 to "9999999999999998.0",
                1e16 to "1e+16",
                2e23 to "2e+23",
                1.2345e100 to "1.2345e+100",
                5e-324 to "5e-324",
                Double.MAX_VALUE to "1.7976931348623157e+308",
                Math.pow(2.0, -44.0) to "5.684341886080802e-14",
            )
        for ((value, text) in written) assertEquals(text, floatText(value))
        assertFailsWith<IllegalArgumentException> { floatText(Double.NaN) }
    }

    @Test
    fun everyFloatReadsBack() {
        val random = Random(1)
        repeat(5_000) {
            val value = Double.fromBits(random.nextLong())
            if (value.isFinite()) assertEquals(value, parseJson(floatText(value)))
        }
    }
}
