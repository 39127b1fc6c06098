// The C of iOS as the demo calls it. From the iOS 18.0 SDK: mach/task_info.h, mach/task.h, mach/mach_init.h.
// Its uname is Linux's, too, and comes with Foundation.
public typealias natural_t = UInt32
public typealias integer_t = Int32
public typealias mach_msg_type_number_t = natural_t
public typealias task_flavor_t = natural_t
public typealias task_name_t = UInt32
public typealias kern_return_t = Int32
public typealias mach_vm_size_t = UInt64

public struct task_vm_info {
    public init() { stub() }
    public var resident_size: mach_vm_size_t
    public var resident_size_peak: mach_vm_size_t
    public var `internal`: mach_vm_size_t
    public var external: mach_vm_size_t
    public var phys_footprint: mach_vm_size_t
}

public typealias task_vm_info_data_t = task_vm_info

public let TASK_VM_INFO: Int32 = 22
public let KERN_SUCCESS: Int32 = 0
public var mach_task_self_: task_name_t { stub() }

public func task_info(
    _ target_task: task_name_t, _ flavor: task_flavor_t, _ task_info_out: UnsafeMutablePointer<integer_t>!,
    _ task_info_outCnt: UnsafeMutablePointer<mach_msg_type_number_t>!
) -> kern_return_t { stub() }

func stub() -> Never { fatalError("only for the type checker") }
