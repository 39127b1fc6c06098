// CryptoKit as the demo calls it. From the iOS 18.0 SDK: CryptoKit.swiftinterface.
import Foundation

public struct SHA256 {
    public init() { stub() }
    public mutating func update<D: DataProtocol>(data: D) { stub() }
    public func finalize() -> SHA256Digest { stub() }
}

public struct SHA256Digest: Sequence {
    public func makeIterator() -> Array<UInt8>.Iterator { stub() }
}

func stub() -> Never { fatalError("only for the type checker") }
