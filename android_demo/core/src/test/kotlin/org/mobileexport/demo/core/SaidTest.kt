package org.mobileexport.demo.core

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class SaidTest {
    private val stats = """{"decode_token_per_sec":40.5,"prompt_tokens":10,"generated_tokens":2,"gpu_peak_usage_mb":-1.0}"""

    @Test
    fun theEndTokenIsNotShown() {
        val said = said(listOf("It", " is", "<|im_end|>"), stats, 0.2, stopped = false, before = 5, maxContext = 64)
        assertEquals(Said("It is", ended = true, firstTokenS = 0.2, tokensPerS = 40.5, used = 17), said)
    }

    @Test
    fun whatWasStoppedOrHadNoMoreRoomIsShownWhole() {
        val pieces = listOf("It", " is", " so")
        for ((stopped, room) in listOf(true to 64, false to 13)) {
            val said = said(pieces, stats, 0.2, stopped, before = 0, maxContext = room)
            assertEquals("It is so" to false, said.text to said.ended)
        }
    }

    @Test
    fun aShortAnswerHasNoRate() {
        assertEquals(null, said(emptyList(), "{}", 0.0, stopped = false, before = 0, maxContext = 64).tokensPerS)
        assertEquals(null, said(listOf("a"), stats.replace(":2,", ":1,"), 0.1, false, 0, 64).tokensPerS)
        assertFailsWith<Refusal> { said(emptyList(), "nan", 0.0, false, 0, 64) }
    }
}
