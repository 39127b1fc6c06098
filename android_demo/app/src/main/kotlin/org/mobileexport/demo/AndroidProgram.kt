package org.mobileexport.demo

import org.mobileexport.demo.core.Job
import org.mobileexport.demo.core.Kind
import org.mobileexport.demo.core.Program
import org.mobileexport.demo.core.Refusal
import org.mobileexport.demo.core.oneLine
import org.mobileexport.demo.core.peakRssKib
import org.mobileexport.demo.core.residentOf
import org.pytorch.executorch.EValue
import org.pytorch.executorch.ExecuTorchRuntime
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
import java.io.File

/**
 * The .pte of a job in ExecuTorch's Java API, token ids in and logits out as in mobile_export's runners.
 *
 * The library is loaded here already: its pages are the process's, not the model's. [Module.load] sets the size of the one
 * thread pool, which has no way to be asked afterwards.
 */
class AndroidProgram(private val job: Job) : Program {
    private lateinit var module: Module
    private lateinit var last: Tensor

    init {
        refused("loading the library") { ExecuTorchRuntime.getRuntime() }
    }

    override val runtime = "executorch ${BuildConfig.EXECUTORCH_VERSION}, Android"

    override val backends get() = ExecuTorchRuntime.getRegisteredBackends().toList()

    override fun load() {
        module = refused("loading the program") { Module.load(job.model, Module.LOAD_MODE_MMAP, job.threads) }
    }

    override fun constant(method: String): Long? =
        refused(method) { if (method in module.getMethods()) module.execute(method)[0].toInt() else null }

    override fun initialise() {
        refused("initialising forward") { module.loadMethod("forward") }
    }

    override fun run(tokens: LongArray, start: Long) {
        val ids = Tensor.fromBlob(tokens, longArrayOf(1, tokens.size.toLong()))
        val position = Tensor.fromBlob(longArrayOf(start), longArrayOf(1))
        last =
            refused("running ${tokens.size} tokens at $start") {
                module.execute("forward", EValue.from(ids), EValue.from(position))[0].toTensor()
            }
    }

    override fun logits(): FloatArray = refused("reading the logits") { last.dataAsFloatArray }

    override fun resident() = residentOf(File("/proc/self/smaps_rollup").readText())

    override fun peakRssKib() = peakRssKib(File("/proc/self/status").readText())

    override fun close() {
        if (::module.isInitialized) module.close()
    }

    /** What the runtime throws, as a line: its own exceptions, and those of a library that does not load. */
    private fun <T> refused(what: String, call: () -> T): T = try {
        call()
    } catch (error: RuntimeException) {
        throw Refusal(Kind.REFUSED, oneLine("${job.model}: $what failed: ${error.message}"))
    } catch (error: LinkageError) {
        throw Refusal(Kind.REFUSED, oneLine("$what failed: ${error.message}"))
    }
}
