// os as the demo calls it. From the iOS 18.0 SDK: os/proc.h (size_t is Int).
public func os_proc_available_memory() -> Int { fatalError("only for the type checker") }
