// ExecuTorch's Swift interface as the demo calls it. From extension/apple/ExecuTorch/Exported at commit cff6f4dd (1.5.0, unchanged
// since tag v1.4.1): ExecuTorchModule.h, ExecuTorch+Module.swift, ExecuTorch+Tensor.swift, ExecuTorch+Value.swift.
import Foundation

public enum ModuleLoadMode: Int { case file, mmap, mmapUseMlock, mmapUseMlockIgnoreErrors }
public enum ShapeDynamism: Int { case `static`, dynamicBound, dynamicUnbound }

public final class MethodMetadata: NSObject {
    public var backendNames: [String] { stub() }
}

public class Module: NSObject {
    public init(filePath: String, dataFilePaths: [String], loadMode: ModuleLoadMode) { stub() }
    public convenience init(filePath: String, loadMode: ModuleLoadMode) { stub() }
    public convenience init(filePath: String) { stub() }
    public func load() throws { stub() }
    public func load(_ methodName: String) throws { stub() }
    public func methodMetadata(_ methodName: String) throws -> MethodMetadata { stub() }
    public func forward(_ inputs: [ValueConvertible]) throws -> [Value] { stub() }
    public func forward(_ inputs: ValueConvertible...) throws -> [Value] { stub() }
    public func forward<Output: ValueSequenceConstructible>(_ inputs: [ValueConvertible]) throws -> Output { stub() }
}

public protocol ValueConvertible {
    func asValue() -> Value
}

public protocol ValueSequenceConstructible {
    static func from(_ values: [Value]) throws -> Self
}

extension Array: ValueSequenceConstructible where Element == Value {
    public static func from(_ values: [Value]) throws -> [Element] { stub() }
}

public class Value: NSObject, ValueConvertible {
    public func asValue() -> Value { stub() }
    public func tensor<T: Scalar>() -> Tensor<T>? { stub() }
}

public protocol Scalar {}
extension Int64: Scalar {}
extension Float: Scalar {}

public final class Tensor<T: Scalar>: ValueConvertible {
    public init(
        _ scalars: [T], shape: [Int] = [], strides: [Int] = [], dimensionOrder: [Int] = [],
        shapeDynamism: ShapeDynamism = .dynamicBound
    ) { stub() }
    public func asValue() -> Value { stub() }
    public func scalars() -> [T] { stub() }
}

func stub() -> Never { fatalError("only for the type checker") }
