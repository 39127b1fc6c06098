package org.mobileexport.demo.core

import java.io.File
import kotlin.system.exitProcess

/**
 * The benchmark activity without a phone: FILES CHILD... --es NAME VALUE ..., with the extras as `am start` takes them.
 *
 * FILES stands for the app's own folder, where runs/ID.json appears. CHILD is the command of a process that runs .pte files
 * (tests/android_program.py) and answers a line of JSON for each it reads.
 */
fun main(arguments: Array<String>) {
    val first = arguments.indexOf("--es").let { if (it < 0) arguments.size else it }
    val command = arguments.slice(1 until first)
    val extras =
        arguments.drop(first).chunked(3).associate { (option, name, value) ->
            check(option == "--es")
            name to value
        }
    try {
        println(benchmark(extras, File(arguments[0], "runs")) { job -> ChildProgram(command, job) })
    } catch (refusal: Refusal) { // no file can be named; the activity shows it on the screen
        System.err.println(refusal.what)
        exitProcess(1)
    }
}

/** A program in a process of its own, whose memory and logits are real. One line of JSON asks, one answers. */
class ChildProgram(command: List<String>, private val job: Job) : Program {
    private val process = ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start()
    private val toChild = process.outputStream.bufferedWriter()
    private val fromChild = process.inputStream.bufferedReader()
    private var told: Map<*, *> = emptyMap<String, Any?>()

    override val runtime get() = told["runtime"] as String
    override val backends get() = (told["backends"] as List<*>).map { it as String }

    override fun load() {
        told = ask("load", "model" to job.model, "threads" to job.threads)
    }

    override fun constant(method: String) = (told["constants"] as Map<*, *>)[method] as Long?

    override fun initialise() {
        ask("initialise")
    }

    override fun run(tokens: LongArray, start: Long) {
        ask("run", "tokens" to tokens.toList(), "start" to start)
    }

    override fun logits() = (ask("logits")["values"] as List<*>).map { (it as Double).toFloat() }.toFloatArray()

    override fun resident() = residentOf(ask("read", "file" to "/proc/self/smaps_rollup")["text"] as String)

    override fun peakRssKib() = peakRssKib(ask("read", "file" to "/proc/self/status")["text"] as String)

    override fun close() {
        toChild.close()
        process.waitFor()
    }

    private fun ask(what: String, vararg more: Pair<String, Any>): Map<*, *> {
        toChild.write(jsonText(linkedMapOf("do" to what, *more)) + "\n")
        toChild.flush()
        val line = fromChild.readLine() ?: error("the child ended with exit code ${process.waitFor()}")
        val answer = parseJson(line) as Map<*, *>
        answer["error"]?.let { throw Refusal(Kind.REFUSED, it as String) }
        return answer
    }
}
