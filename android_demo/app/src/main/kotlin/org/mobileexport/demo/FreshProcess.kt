package org.mobileexport.demo

import org.mobileexport.demo.core.Kind
import org.mobileexport.demo.core.Refusal
import java.util.concurrent.atomic.AtomicBoolean

/** Memory is measured above what a process held before the model: a process that ran one before measures nothing. */
object FreshProcess {
    private val used = AtomicBoolean()

    /** Says that a model is loaded into this process from now on. */
    fun use() = used.set(true)

    /** The same, and throws a [Refusal] where one was before. */
    fun claim() {
        if (used.getAndSet(true)) throw Refusal(Kind.USAGE, "this process ran a model before: am force-stop the app first")
    }
}
