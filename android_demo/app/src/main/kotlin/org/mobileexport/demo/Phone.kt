package org.mobileexport.demo

import android.app.ActivityManager
import android.content.Context
import android.os.Debug
import android.os.PowerManager
import org.mobileexport.demo.core.Device
import org.mobileexport.demo.core.exactly

/** What this phone has: the memory Android sees, and of it what is not free for an app now. */
fun device(context: Context): Device {
    val memory = ActivityManager.MemoryInfo()
    context.getSystemService(ActivityManager::class.java).getMemoryInfo(memory)
    return Device(dram = exactly(memory.totalMem), reserve = exactly(memory.totalMem - memory.availMem))
}

/** PSS of this process and the memory status of the phone, as a line. */
fun memoryLine(context: Context): String {
    val memory = Debug.MemoryInfo()
    Debug.getMemoryInfo(memory)
    val status = context.getSystemService(PowerManager::class.java).currentThermalStatus
    val words = context.resources.getStringArray(R.array.thermal)
    val thermal = words.getOrElse(status) { status.toString() }
    return context.getString(R.string.memory, memory.totalPss / KIB_A_MIB, memory.totalPrivateDirty / KIB_A_MIB, thermal)
}

private const val KIB_A_MIB = 1024
