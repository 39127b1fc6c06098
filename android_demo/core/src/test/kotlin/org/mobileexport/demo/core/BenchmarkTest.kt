package org.mobileexport.demo.core

import java.io.File
import kotlin.io.path.createTempDirectory
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** Notes what is asked of it; a real program is behind the benchmark in tests/test_android_demo.py. */
private class Noted(private val maxPrompt: Long? = 4, private val vocabSize: Long? = 10) : Program {
    val calls = ArrayList<String>()
    override val runtime = "noted 1"
    override val backends = listOf("Noted")

    override fun load() {
        calls.add("load")
    }

    override fun constant(method: String) = when (method) {
        "get_max_seq_len" -> maxPrompt
        "get_vocab_size" -> vocabSize
        else -> null
    }

    override fun initialise() {
        calls.add("initialise")
    }

    override fun run(tokens: LongArray, start: Long) {
        calls.add("${tokens.joinToString(" ")} at $start")
    }

    override fun logits() = floatArrayOf(1f, 3f, 2f)

    override fun resident() = Resident(calls.size.toLong(), 0, 0).also { calls.add("memory") }

    override fun peakRssKib() = 99L

    override fun close() {
        calls.add("close")
    }
}

class BenchmarkTest {
    private val job =
        Job(
            "m",
            threads = 3,
            promptTokens = 5,
            newTokens = 2,
            sequences = 2,
            warmUp = 1,
            logitsOf = listOf(3, 4),
            logitsValues = 2,
        )

    @Test
    fun callsComeInTheRunnersOrder() {
        val program = Noted()
        val measured = measure(job, program)
        val prompt = listOf("3 4 5 6 at 0", "7 at 4")
        val sequence = prompt + listOf("3 at 5", "4 at 6")
        val start = listOf("memory", "load", "memory", "initialise", "memory")
        assertEquals(start + prompt + sequence + sequence + sequence + "memory" + "3 4 at 0", program.calls)
        assertEquals(listOf(2, 2), measured.decodeS.map { it.size })
        assertEquals(2, measured.prefillS.size)
        assertEquals(Logits(listOf(3, 4), 3, 1, 6.0, listOf(1.0, 3.0)), measured.logits)
        assertTrue(measured.firstTokenS > 0)
    }

    @Test
    fun aProgramThatSaysNothingOfItsSizesTakesTokenByToken() {
        val program = Noted(maxPrompt = null, vocabSize = null)
        measure(job.copy(promptTokens = 2, newTokens = 0, sequences = 0, warmUp = 0, logitsOf = emptyList()), program)
        assertEquals(listOf("3 at 0", "4 at 1"), program.calls.filter { "at" in it })
    }

    @Test
    fun tokensStayWithinTheVocabulary() {
        val program = Noted(maxPrompt = 64, vocabSize = 4)
        measure(job, program)
        assertContains(program.calls, "3 0 1 2 3 at 0")
    }

    @Test
    fun theResultIsOneFileWrittenAsAWhole() {
        val folder = createTempDirectory().toFile()
        val extras = mapOf("run" to "a.1", "model" to "m", "prompt-tokens" to "3", "new-tokens" to "1")
        val program = Noted()
        val line = benchmark(extras, File(folder, "runs")) { program }
        assertEquals(listOf("a.1.json"), File(folder, "runs").list()?.toList())
        assertEquals(line + "\n", File(folder, "runs/a.1.json").readText())
        assertEquals("close", program.calls.last())
        folder.deleteRecursively()
    }

    @Test
    fun whateverGoesWrongIsInTheFile() {
        val folder = createTempDirectory().toFile()
        val wrong: List<Pair<Throwable, String>> =
            listOf(
                Refusal(Kind.REFUSED, "no") to "{\"error\": {\"kind\": \"refused\", \"what\": \"no\"}}",
                OutOfMemoryError("heap") to "{\"error\": {\"kind\": \"memory\", \"what\": \"out of memory: heap\"}}",
                IllegalStateException(
                    "a\n b",
                ) to "{\"error\": {\"kind\": \"crash\", \"what\": \"IllegalStateException: a b\"}}",
            )
        for ((error, said) in wrong) {
            benchmark(mapOf("run" to "a", "model" to "m"), folder) { throw error }
            assertEquals(said + "\n", File(folder, "a.json").readText())
        }
        folder.deleteRecursively()
    }

    @Test
    fun aFolderThatCannotBeWrittenIsSaid() {
        val file = kotlin.io.path.createTempFile().toFile()
        val refusal =
            assertFailsWith<Refusal> { benchmark(mapOf("run" to "a", "model" to "m"), File(file, "runs")) { Noted() } }
        assertContains(refusal.what, "cannot be written")
        file.delete()
    }

    @Test
    fun extrasAreReadStrictly() {
        val given = mapOf("run" to "r", "model" to "m", "threads" to "4", "logits-of" to "1,2", "logits-values" to "0")
        assertEquals(Job("m", 4, 128, 64, 1, 1, listOf(1, 2), 0), jobOf(given))
        val wrong =
            listOf(
                mapOf("threads" to "65"), mapOf("prompt-tokens" to "0"), mapOf("new-tokens" to "-1"), mapOf("sequences" to ""),
                mapOf("warm-up" to "1.0"), mapOf("logits-of" to "1,,2"), mapOf("logits-of" to ""), mapOf("affinity" to "0"),
                mapOf("new-tokens" to "99999999999"), mapOf("logits-values" to "٣"),
            )
        for (more in wrong) assertEquals(Kind.USAGE, assertFailsWith<Refusal>("$more") { jobOf(given + more) }.kind)
        assertFailsWith<Refusal> { jobOf(mapOf("run" to "r")) }
    }

    @Test
    fun aRunsNameIsAPlainFileName() {
        for (name in listOf("", ".", "..", "a/b", "../a", ".a", "a b", "a\u0000", "é", "a".repeat(65))) {
            assertFailsWith<Refusal>(name) { runOf(mapOf("run" to name)) }
        }
        assertFailsWith<Refusal> { runOf(emptyMap()) }
        assertEquals("a-1_b.c", runOf(mapOf("run" to "a-1_b.c")))
    }

    @Test
    fun memoryIsReadAsTheRunnerReadsIt() {
        val rollup = "55d0-7ffe ---p 0 00:00 0 [rollup]\nRss:   3000 kB\nPss:  1500 kB\nPss_Dirty: 9 kB\nAnonymous: 1000 kB\n"
        assertEquals(Resident(1000, 2000, 1500), residentOf(rollup))
        assertEquals(4096, peakRssKib("Name:\tx\nVmPeak:\t9999 kB\nVmHWM:\t    4096 kB\n"))
        assertFailsWith<Refusal> { peakRssKib("") }
    }
}
