package org.mobileexport.demo

import org.mobileexport.demo.core.Artifact
import org.mobileexport.demo.core.Asking
import org.mobileexport.demo.core.Kind
import org.mobileexport.demo.core.Refusal
import org.mobileexport.demo.core.Said
import org.mobileexport.demo.core.oneLine
import org.mobileexport.demo.core.said
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmModule

/**
 * An artifact in ExecuTorch's own text runner, greedy, so that it says what `mobile-export generate` says.
 *
 * Every call but [stop] belongs on one background thread.
 */
class Speaker(private val artifact: Artifact) : AutoCloseable {
    private val bos = if (artifact.manifest.chat == null && artifact.manifest.addsBos) 1 else 0 // templates write their own
    private val llm = refused { LlmModule(TEXT, artifact.model.path, artifact.tokenizer.path, GREEDY, emptyList(), bos, 0) }
    private var used = 0L // tokens in the cache

    @Volatile private var stopped = false

    init {
        refused { llm.load() }
    }

    /** Answers; [onPiece] gets the text bit by bit. Throws a [Refusal] where the runtime stops short, of a full context e.g. */
    fun say(asking: Asking, onPiece: (String) -> Unit): Said {
        stopped = false
        if (asking.fresh) {
            llm.resetContext()
            used = 0
        }
        val heard = Heard(onPiece)
        refused { llm.generate(asking.prompt, artifact.manifest.maxContext, heard, false, GREEDY, bos, 0) }
        return said(heard.pieces, heard.stats, heard.firstTokenS, stopped, used, artifact.manifest.maxContext).also {
            used =
                it.used
        }
    }

    /** Ends [say] after the next token; from any thread. */
    fun stop() {
        stopped = true
        llm.stop()
    }

    override fun close() = llm.close()

    private fun <T> refused(call: () -> T): T = try {
        call()
    } catch (error: RuntimeException) {
        throw Refusal(Kind.REFUSED, oneLine("${artifact.folder.name}: ExecuTorch refuses: ${error.message}"))
    } catch (error: LinkageError) {
        throw Refusal(Kind.REFUSED, oneLine("ExecuTorch's library does not load: ${error.message}"))
    }

    private class Heard(private val onPiece: (String) -> Unit) : LlmCallback {
        private val began = System.nanoTime()
        val pieces = ArrayList<String>()
        var stats = "{}"
        var firstTokenS = 0.0

        override fun onResult(result: String) {
            if (pieces.isEmpty()) firstTokenS = (System.nanoTime() - began) / 1e9
            pieces.add(result)
            onPiece(result)
        }

        override fun onStats(stats: String) {
            this.stats = stats
        }
    }

    private companion object {
        const val TEXT = LlmModule.MODEL_TYPE_TEXT
        const val GREEDY = 0f
    }
}
