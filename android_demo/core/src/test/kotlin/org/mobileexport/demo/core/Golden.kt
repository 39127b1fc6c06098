package org.mobileexport.demo.core

import java.io.File
import kotlin.math.abs
import kotlin.test.fail

/** tests/golden of the repository, which Python writes; Gradle and pytest both run these tests from android_demo/core. */
val GOLDEN = File("../../tests/golden")

typealias Plain = Map<*, *>

/** The cases of a golden file. */
fun golden(name: String): List<Plain> = plain(File(GOLDEN, name).readText())

/** The manifest a case names, where it is one this app opens; null for other formats. */
fun goldenManifest(case: Plain): String? {
    val text = File(GOLDEN, "manifests/${case["manifest"]}").readText()
    val values = parseJson(text) as Plain
    val pte = values["pte"] as Plain?
    return text.takeIf { pte != null && pte["core_ml"] == null }
}

@Suppress("UNCHECKED_CAST")
fun <T> plain(text: String): T = parseJson(text) as T

fun number(value: Any?): Double = (value as Number).toDouble()

fun numbers(value: Any?): List<Double> = (value as List<*>).map(::number)

fun interval(value: Any?): Interval = numbers(value).let { (low, likely, high) -> Interval(low, likely, high) }

/** Equal to a billionth: the same formula may add in another order. */
fun assertClose(expected: Interval, found: Interval, where: String) {
    val pairs = listOf(expected.low to found.low, expected.likely to found.likely, expected.high to found.high)
    if (pairs.any { (wanted, got) -> abs(wanted - got) > 1e-9 * abs(wanted) }) fail("$where: $found, Python gives $expected")
}
