package org.mobileexport.demo.core

import kotlin.test.Test
import kotlin.test.assertEquals

class VerdictTest {
    private fun outcome(needed: Interval, allowed: Interval) = Answer("memory", needed, allowed).outcome

    @Test
    fun whatIsNotKnownDecidesAtTheEnds() {
        val allowed = Interval(100.0, 110.0, 120.0)
        assertEquals(Outcome.FITS, outcome(Interval(50.0, 60.0, 100.0), allowed))
        assertEquals(Outcome.UNCERTAIN, outcome(Interval(50.0, 60.0, 101.0), allowed))
        assertEquals(Outcome.UNCERTAIN, outcome(Interval(120.0, 500.0, 900.0), allowed))
        assertEquals(Outcome.DOES_NOT_FIT, outcome(Interval(121.0, 500.0, 900.0), allowed))
    }
}
