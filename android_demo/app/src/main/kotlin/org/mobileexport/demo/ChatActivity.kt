package org.mobileexport.demo

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.ScrollView
import android.widget.TextView
import org.mobileexport.demo.core.Artifact
import org.mobileexport.demo.core.Conversation
import org.mobileexport.demo.core.Outcome
import org.mobileexport.demo.core.Said
import org.mobileexport.demo.core.artifactsIn
import org.mobileexport.demo.core.judge
import org.mobileexport.demo.core.openArtifact
import org.mobileexport.demo.core.pteMemory
import org.mobileexport.demo.core.refusalOf
import org.mobileexport.demo.core.worst
import java.io.File
import java.util.concurrent.Executors

/**
 * Opens an artifact, says whether it fits this phone, and chats with it.
 *
 * What takes long runs on one background thread, [work], in the order it was asked for; [speaker] and [conversation] belong to
 * that thread, save for [Speaker.stop]. Views belong to the main thread.
 */
class ChatActivity : Activity() {
    private val work = Executors.newSingleThreadExecutor()

    @Volatile private var speaker: Speaker? = null
    private var conversation = Conversation(null)
    private var artifact: Artifact? = null
    private var speaking = false // main thread

    private val status by lazy { findViewById<TextView>(R.id.artifact) }
    private val scroll by lazy { findViewById<ScrollView>(R.id.scroll) }
    private val transcript by lazy { findViewById<TextView>(R.id.transcript) }
    private val speed by lazy { findViewById<TextView>(R.id.speed) }
    private val memory by lazy { findViewById<TextView>(R.id.memory) }
    private val text by lazy { findViewById<EditText>(R.id.text) }
    private val choose by lazy { findViewById<Button>(R.id.choose) }
    private val startAnew by lazy { findViewById<Button>(R.id.start_anew) }
    private val send by lazy { findViewById<Button>(R.id.send) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.chat)
        choose.setOnClickListener { chooseArtifact() }
        startAnew.setOnClickListener { beginConversation() }
        send.setOnClickListener { if (speaking) speaker?.stop() else speak() }
        memory.text = memoryLine(this)
    }

    override fun onDestroy() {
        speaker?.stop()
        work.execute { speaker?.close() }
        work.shutdown()
        super.onDestroy()
    }

    /** Offers what was pushed and what was copied here before, and the system's picker. */
    private fun chooseArtifact() = inBackground {
        val found = artifactsIn(PUSHED) + artifactsIn(copies())
        runOnUiThread {
            AlertDialog.Builder(this)
                .setTitle(R.string.choose)
                .setItems((found.map { it.name } + getString(R.string.other_folder)).toTypedArray()) { _, which ->
                    found.getOrNull(which)?.let(::open)
                        ?: startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)
                }.show()
        }
    }

    @Deprecated("The framework has nothing newer without AndroidX")
    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        val tree = data?.data
        if (requestCode != PICK || resultCode != RESULT_OK || tree == null) return
        status.text = getString(R.string.copying, tree.lastPathSegment)
        inBackground {
            val folder = copyPicked(contentResolver, tree, copies())
            runOnUiThread { open(folder) }
        }
    }

    /** Checks an artifact's files and what it would need; asks first where that may be more than the phone has. */
    private fun open(folder: File) {
        status.text = getString(R.string.checking, folder.name)
        inBackground {
            val opened = openArtifact(folder)
            opened.tokenizer
            val answers = judge(pteMemory(opened.manifest.facts), device(this))
            runOnUiThread {
                if (worst(answers) == Outcome.FITS) return@runOnUiThread load(opened)
                AlertDialog.Builder(this)
                    .setTitle(R.string.may_not_fit)
                    .setMessage(answers.joinToString("\n") { "${it.outcome.word}: ${it.reason}" })
                    .setPositiveButton(R.string.load_anyway) { _, _ -> load(opened) }
                    .setNegativeButton(android.R.string.cancel, null)
                    .show()
            }
        }
    }

    private fun load(opened: Artifact) {
        status.text = getString(R.string.loading, opened.folder.name)
        send.isEnabled = false
        inBackground {
            FreshProcess.use()
            speaker?.close()
            speaker = null // so that two are never in memory
            val began = System.nanoTime()
            speaker = Speaker(opened)
            artifact = opened
            val seconds = (System.nanoTime() - began) / 1e9
            val manifest = opened.manifest
            runOnUiThread {
                val line = getString(R.string.loaded, opened.folder.name, manifest.recipe, manifest.maxContext, seconds)
                status.text = if (manifest.chat == null) line + getString(R.string.goes_on) else line
                send.isEnabled = true
                startAnew.isEnabled = true
                beginConversation()
            }
        }
    }

    private fun beginConversation() {
        transcript.text = ""
        speed.text = ""
        inBackground { conversation = Conversation(artifact?.manifest?.chat) }
    }

    private fun speak() {
        val said = text.text.toString()
        if (said.isBlank()) return
        text.setText("")
        show("$said\n\n")
        setSpeaking(true)
        inBackground {
            val current = speaker ?: return@inBackground
            try {
                val answer = current.say(conversation.ask(said)) { piece -> runOnUiThread { show(piece) } }
                conversation.answered(answer.text, answer.ended)
                runOnUiThread { showSpeed(answer) }
            } catch (error: Exception) {
                conversation.failed()
                throw error
            } finally {
                runOnUiThread { setSpeaking(false) }
            }
        }
    }

    private fun setSpeaking(now: Boolean) {
        speaking = now
        send.setText(if (now) R.string.stop else R.string.send)
        choose.isEnabled = !now
        startAnew.isEnabled = !now
    }

    private fun show(piece: String) {
        transcript.append(piece)
        scroll.post { scroll.fullScroll(ScrollView.FOCUS_DOWN) }
    }

    private fun showSpeed(said: Said) {
        show("\n\n")
        val rate = said.tokensPerS
        speed.text =
            if (rate ==
                null
            ) {
                getString(R.string.speed_unknown, said.firstTokenS)
            } else {
                getString(R.string.speed, said.firstTokenS, rate)
            }
    }

    /** Does [task] on the background thread, if the screen is still there; what goes wrong is one line in a dialog. */
    private fun inBackground(task: () -> Unit) {
        if (work.isShutdown) return
        work.execute {
            val problem = runCatching(task).exceptionOrNull()?.let { refusalOf(it).what }
            val line = memoryLine(this)
            runOnUiThread {
                memory.text = line
                if (problem != null && !isFinishing) showProblem(problem)
            }
        }
    }

    private fun showProblem(line: String) {
        status.text = line
        AlertDialog.Builder(this)
            .setTitle(R.string.problem)
            .setMessage(line)
            .setPositiveButton(android.R.string.ok, null)
            .show()
    }

    private fun copies() = File(filesDir, "artifacts")

    private companion object {
        /** Where `mobile-export push` puts artifacts: apps may read what adb's shell wrote there. */
        val PUSHED = File("/data/local/tmp/mobile-export/artifacts")
        const val PICK = 1
    }
}
