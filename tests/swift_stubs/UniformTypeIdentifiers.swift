// UniformTypeIdentifiers as the demo calls it. From the iOS 18.0 SDK: UniformTypeIdentifiers.swiftinterface.
public struct UTType: Sendable {
    public static var folder: UTType { fatalError("only for the type checker") }
}
