package org.mobileexport.demo

import android.app.Activity
import android.os.Bundle
import android.widget.TextView
import org.mobileexport.demo.core.benchmark
import org.mobileexport.demo.core.refusalOf
import java.io.File
import kotlin.concurrent.thread

/**
 * Runs one benchmark by intent extras and writes runs/ID.json into the app's external files, for `mobile-export profile --adb
 * --runner app`. The extras are those of [org.mobileexport.demo.core.jobOf], all of them texts.
 *
 * Its layout keeps the screen on. A process measures once: adb stops the app before each run.
 */
class BenchmarkActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.benchmark)
        val result = findViewById<TextView>(R.id.result)
        if (savedInstanceState != null) return result.setText(R.string.again)
        val extras = intent.extras?.run { keySet().associateWith { getString(it).orEmpty() } }.orEmpty()
        thread(name = "benchmark") {
            val line = run(extras)
            runOnUiThread { result.text = line }
        }
    }

    private fun run(extras: Map<String, String>): String = try {
        benchmark(extras, File(getExternalFilesDir(null), "runs")) { job ->
            FreshProcess.claim()
            AndroidProgram(job)
        }
    } catch (error: Throwable) { // no file could be named or written: the screen is all there is
        refusalOf(error).what
    }
}
