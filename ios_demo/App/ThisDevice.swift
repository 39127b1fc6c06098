import Darwin
import Foundation
import MobileExportCore
import os

/// What the system says of this device and this process.
enum ThisDevice {
    static let mib = 1_048_576.0

    /// As Apple numbers it: "iPhone17,1".
    static var model: String {
        var system = utsname()
        uname(&system)
        return withUnsafeBytes(of: &system.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    /// DRAM the system sees, and most dirty memory this process may still take. A simulator tells no limit.
    static var target: Target {
        let dram = Interval(exactly: Double(ProcessInfo.processInfo.physicalMemory))
        let available = os_proc_available_memory()
        return Target(name: model, dram: dram, appLimit: available > 0 ? Interval(exactly: Double(available)) : nil)
    }

    /// Of this process now, and the most there ever was. Dirty memory is what counts against the limit: `phys_footprint`.
    static let memory = MemoryGauge(
        resident: {
            let info = taskInfo()
            let dirty = Int(info.phys_footprint / 1024)
            let clean = Int(info.external / 1024)
            return Resident(rssAnonKib: dirty, rssFileKib: clean, pssKib: dirty + clean)
        },
        peakKib: { Int(taskInfo().resident_size_peak / 1024) })

    static var thermal: String {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: return "nominal"
        case .fair: return "fair"
        case .serious: return "serious: clocks are cut"
        case .critical: return "critical: clocks are cut"
        @unknown default: return "unknown"
        }
    }

    static var profile: Profile.Device {
        let process = ProcessInfo.processInfo
        return Profile.Device(
            system: "iOS \(process.operatingSystemVersionString)", model: model, cores: process.processorCount,
            memoryMib: Double(process.physicalMemory) / mib)
    }

    private static func taskInfo() -> task_vm_info_data_t {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let result = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) { words in
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), words, &count)
            }
        }
        precondition(result == KERN_SUCCESS, "a process may ask about itself")
        return info
    }
}
