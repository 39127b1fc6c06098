package org.mobileexport.demo.core

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue

/** What Python, Kotlin and Swift must give alike. */
class GoldenTest {
    @Test
    fun memoryTermsAreThoseOfCheck() {
        val cases = golden("memory.json").mapNotNull { case -> goldenManifest(case)?.let { case to it } }
        assertTrue(cases.size >= 8, "only ${cases.size} cases of .pte files")
        for ((case, text) in cases) {
            val memory = estimate(case, text)
            val terms = case["terms"] as List<*>
            assertEquals(terms.map { (it as Plain)["name"] }, memory.terms.map { it.name })
            for ((wanted, found) in terms.zip(memory.terms)) {
                val where = "${case["manifest"]}: ${found.name}"
                assertClose(interval((wanted as Plain)["dirty_bytes"]), found.dirty, "$where, dirty")
                assertClose(interval(wanted["clean_bytes"]), found.clean, "$where, clean")
                assertEquals(wanted["when"], found.at.word, where)
            }
            assertClose(interval(case["peak_bytes"]), memory.peak, "${case["manifest"]}: peak")
            assertClose(interval(case["peak_dirty_bytes"]), memory.peakDirty, "${case["manifest"]}: dirty peak")
        }
    }

    @Test
    fun verdictsAreThoseOfCheck() {
        val cases = golden("device.json").mapNotNull { case -> goldenManifest(case)?.let { case to it } }
        assertEquals(Outcome.entries.map { it.word }.toSet(), cases.map { (case) -> case["outcome"] }.toSet())
        for ((case, text) in cases) {
            val device =
                Device(
                    dram = interval(case["dram_bytes"]),
                    share = number(case["share"]),
                    maxMemory = case["max_memory_bytes"] as Long?,
                    appLimit = case["app_limit_bytes"]?.let(::interval),
                    reserve = case["reserve_bytes"]?.let(::interval),
                )
            val answers = judge(estimate(case, text), device)
            assertEquals(case["outcome"], worst(answers).word, "${case["name"]}")
            val said = (case["answers"] as List<*>).map { it as Plain }
            assertEquals(said.map { it["reason"] to it["outcome"] }, answers.map { it.reason to it.outcome.word })
        }
    }

    @Test
    fun promptsAreThoseOfTheCheckpointsTemplate() {
        val cases = golden("chat.json")
        for (case in cases) {
            val template = chatTemplate(Fields("chat.json", case["chat"] as Plain))
            for (each in case["conversations"] as List<*>) {
                val turns = ((each as Plain)["turns"] as List<*>).map { it as String }
                assertEquals(each["prompt"], template.prompt(each["system"] as String?, turns), "${case["name"]}")
            }
        }
        assertTrue(cases.size >= 5 && cases.any { (it["chat"] as Plain)["system"] == null }, "${cases.size} templates")
    }

    @Test
    fun statisticsAreThoseOfProfile() {
        for (case in golden("statistics.json")) {
            val found = summary((case["measurements"] as List<*>).map { measurement(it as Plain) })
            val wanted = case["at_threads"] as Plain
            assertEquals(wanted["threads"], found.threads.toLong())
            val spreads =
                mapOf(
                    "load_s" to found.loadS,
                    "init_s" to found.initS,
                    "first_token_s" to found.firstTokenS,
                    "prefill_tokens_per_s" to found.prefillTokensPerS,
                    "decode_tokens_per_s" to found.decodeTokensPerS,
                    "slow_token_s" to found.slowTokenS,
                )
            for ((name, spread) in spreads) {
                val said = wanted[name] as Plain
                val values = listOf("least", "median", "largest").map { number(said[it]) }
                assertEquals(values, listOf(spread.least, spread.median, spread.largest), "${case["name"]}: $name")
            }
            val memory = wanted["memory"] as Plain
            val held =
                mapOf(
                    "dirty_after_load_mib" to found.memory.dirtyAfterLoadMib,
                    "dirty_after_init_mib" to found.memory.dirtyAfterInitMib,
                    "dirty_at_end_mib" to found.memory.dirtyAtEndMib,
                    "clean_at_end_mib" to found.memory.cleanAtEndMib,
                    "pss_at_end_mib" to found.memory.pssAtEndMib,
                    "peak_rss_mib" to found.memory.peakRssMib,
                )
            assertEquals<Map<*, *>>(memory.mapValues { number(it.value) }, held, "${case["name"]}")
        }
    }

    @Test
    fun resultFilesAreThoseOfPythonToTheByte() {
        val cases = golden("profile.json")
        assertTrue(cases.isNotEmpty())
        for (case in cases) assertEquals(case["text"], measurement(case["measurement"] as Plain).json() + "\n")
    }

    @Test
    fun manifestsOfOtherFormatsAreRefused() {
        val refused =
            GOLDEN.resolve("manifests").listFiles().orEmpty().sorted().mapNotNull { file ->
                runCatching { readManifest(file.readText()) }.exceptionOrNull()?.let { file.name to (it as Refusal).what }
            }
        assertEquals(
            listOf("coreml-functions", "coreml-in-pte", "coreml-stock", "onnx").map {
                "$it.json"
            },
            refused.map { it.first },
        )
        assertTrue(refused.all { (_, what) -> "this app runs .pte files" in what || "made for Core ML" in what }, "$refused")
    }

    @Test
    fun aManifestOfAModelWithoutTurnsHasNoTemplate() {
        val manifests = GOLDEN.resolve("manifests").listFiles().orEmpty().map { it.readText() }
        val read = manifests.mapNotNull { runCatching { readManifest(it) }.getOrNull() }
        assertTrue(read.any { it.chat != null })
        assertNull(read.first { it.source.isNotEmpty() && it.chat == null }.chat)
    }

    private fun estimate(case: Plain, text: String): MemoryEstimate {
        val facts = readManifest(text).facts
        return pteMemory(
            facts,
            context = case["context"] as Long? ?: facts.maxContext,
            promptChunk = case["prompt_chunk"] as Long? ?: facts.promptChunk,
            packedFile = case["packed_file"] as Boolean? ?: false,
        )
    }
}

/** A measurement of a golden file. */
fun measurement(fields: Plain): Measurement {
    fun resident(name: String) =
        (fields[name] as Plain).let { Resident(it.kib("rss_anon_kib"), it.kib("rss_file_kib"), it.kib("pss_kib")) }
    return Measurement(
        runtime = fields["runtime"] as String,
        threads = (fields["threads"] as Long).toInt(),
        backends = (fields["backends"] as List<*>).map { it as String },
        loadS = number(fields["load_s"]),
        initS = number(fields["init_s"]),
        firstTokenS = number(fields["first_token_s"]),
        promptTokens = (fields["prompt_tokens"] as Long).toInt(),
        prefillS = numbers(fields["prefill_s"]),
        decodeS = (fields["decode_s"] as List<*>).map(::numbers),
        atStart = resident("at_start"),
        afterLoad = resident("after_load"),
        afterInit = resident("after_init"),
        atEnd = resident("at_end"),
        peakRssKib = fields.kib("peak_rss_kib"),
        logits = (fields["logits"] as Plain?)?.let(::logits),
    )
}

private fun logits(fields: Plain) = Logits(
    tokens = (fields["tokens"] as List<*>).map { it as Long },
    count = (fields["count"] as Long).toInt(),
    argmax = (fields["argmax"] as Long).toInt(),
    sum = number(fields["sum"]),
    values = numbers(fields["values"]),
)

private fun Plain.kib(name: String) = this[name] as Long
