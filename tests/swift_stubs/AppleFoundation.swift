// What Foundation has on iOS and lacks on Linux, as the demo calls it. From the iOS 18.0 SDK: NSProcessInfo.h, NSURL.h.
import Foundation

extension ProcessInfo {
    public enum ThermalState: Int { case nominal, fair, serious, critical }
    public var thermalState: ThermalState { fatalError("only for the type checker") }
}

extension URL {
    public static var documentsDirectory: URL { fatalError("only for the type checker") }
    public static var applicationSupportDirectory: URL { fatalError("only for the type checker") }
    public func startAccessingSecurityScopedResource() -> Bool { fatalError("only for the type checker") }
    public func stopAccessingSecurityScopedResource() { fatalError("only for the type checker") }
}
