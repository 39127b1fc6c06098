package org.mobileexport.demo.core

import java.io.File

private const val FIRST_TOKEN = 3L // prompts count up from here: fixed tokens, no sampling in the time
private const val NANOSECONDS = 1e9

/**
 * Measures a program step by step as mobile_export/measure/runner/runner.cpp does: load, initialise, the first prompt ever, then
 * sequences of the prompt again and single tokens, memory at four moments, and last the logits of the tokens asked for.
 */
fun measure(job: Job, program: Program): Measurement {
    val atStart = program.resident()
    val loadS = seconds { program.load() }
    val maxPrompt = program.constant("get_max_seq_len") ?: 1
    val vocabSize = program.constant("get_vocab_size") ?: (1L shl 30)
    val afterLoad = program.resident()
    val initS = seconds { program.initialise() }
    val afterInit = program.resident()

    fun token(i: Int) = (FIRST_TOKEN + i) % vocabSize
    val prompt = LongArray(job.promptTokens, ::token)
    val firstTokenS = seconds { inPieces(program, prompt, maxPrompt) }
    val prefillS = ArrayList<Double>()
    val decodeS = ArrayList<List<Double>>()
    repeat(job.warmUp + job.sequences) { sequence ->
        val promptS = seconds { inPieces(program, prompt, maxPrompt) }
        val steps = List(job.newTokens) { i -> seconds { program.run(longArrayOf(token(i)), job.promptTokens + i.toLong()) } }
        if (sequence >= job.warmUp) {
            prefillS.add(promptS)
            decodeS.add(steps)
        }
    }
    return Measurement(
        runtime = program.runtime,
        threads = job.threads,
        backends = program.backends,
        loadS = loadS,
        initS = initS,
        firstTokenS = firstTokenS,
        promptTokens = job.promptTokens,
        prefillS = prefillS,
        decodeS = decodeS,
        atStart = atStart,
        afterLoad = afterLoad,
        afterInit = afterInit,
        atEnd = program.resident(),
        peakRssKib = program.peakRssKib(),
        logits = if (job.logitsOf.isEmpty()) null else logitsOf(job, program, maxPrompt),
    )
}

/**
 * Does what the extras of an intent ask for and writes how it went to [folder]/RUN.json: a measurement, or an error of one line.
 *
 * The file is there as a whole or not at all. Returns the same line for the screen; throws where not even a file can be named.
 */
fun benchmark(extras: Map<String, String>, folder: File, open: (Job) -> Program): String {
    val file = File(folder, "${runOf(extras)}.json")
    val line =
        try {
            val job = jobOf(extras)
            open(job).use { measure(job, it) }.json()
        } catch (error: Throwable) { // whatever it is, the one who waits for the file is to know
            val refusal = refusalOf(error)
            jsonText(mapOf("error" to linkedMapOf("kind" to refusal.kind.word, "what" to refusal.what)))
        }
    writeWhole(file, line + "\n")
    return line
}

/** Writes beside [file], then renames: who polls for the file never reads half of it. */
private fun writeWhole(file: File, text: String) {
    val beside = File(file.path + ".part")
    val made = file.parentFile.isDirectory || file.parentFile.mkdirs()
    if (made) beside.writeText(text)
    if (!made || !beside.renameTo(file)) throw Refusal(Kind.REFUSED, "$file: cannot be written")
}

/** A prompt; in pieces where the program takes no more tokens at once. */
private fun inPieces(program: Program, tokens: LongArray, most: Long) {
    for (from in tokens.indices step most.coerceIn(1, Int.MAX_VALUE.toLong()).toInt()) {
        program.run(tokens.copyOfRange(from, minOf(from + most, tokens.size.toLong()).toInt()), from.toLong())
    }
}

private fun logitsOf(job: Job, program: Program, maxPrompt: Long): Logits {
    inPieces(program, job.logitsOf.toLongArray(), maxPrompt)
    val values = program.logits()
    return Logits(
        tokens = job.logitsOf,
        count = values.size,
        argmax = values.indices.maxByOrNull { values[it] } ?: throw Refusal(Kind.REFUSED, "the program gives no logits"),
        sum = values.fold(0.0) { sum, value -> sum + value },
        values = values.take(job.logitsValues).map { it.toDouble() },
    )
}

private fun seconds(work: () -> Unit): Double {
    val began = System.nanoTime()
    work()
    return (System.nanoTime() - began) / NANOSECONDS
}
