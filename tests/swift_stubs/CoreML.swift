// CoreML as the demo calls it. From the iOS 18.0 SDK: CoreML.swiftinterface, MLModel+MLState.h, MLModel.h, MLFeatureProvider.h,
// MLModelConfiguration.h.
import Foundation

public enum MLComputeUnits: Int { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

open class MLModelConfiguration: NSObject {
    open var computeUnits: MLComputeUnits { get { stub() } set { stub() } }
    open var functionName: String? { get { stub() } set { stub() } }
}

public final class MLState: @unchecked Sendable {}

open class MLModel: NSObject, @unchecked Sendable {
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws { stub() }
    open class func compileModel(at modelURL: URL) async throws -> URL { stub() }
    public func makeState() -> MLState { stub() }
    open func prediction(from inputFeatures: any MLFeatureProvider, using state: MLState) throws -> any MLFeatureProvider { stub() }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

open class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws { stub() }
    open var featureNames: Set<String> { stub() }
    open func featureValue(for featureName: String) -> MLFeatureValue? { stub() }
}

open class MLFeatureValue: NSObject {
    public convenience init<Scalar: MLShapedArrayScalar>(shapedArray: MLShapedArray<Scalar>) { stub() }
    public func shapedArrayValue<Scalar: MLShapedArrayScalar>(of type: Scalar.Type) -> MLShapedArray<Scalar>? { stub() }
}

public protocol MLShapedArrayScalar {}
extension Float16: MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}

public protocol MLShapedArrayProtocol {
    associatedtype Scalar: MLShapedArrayScalar
    var shape: [Int] { get }
}

extension MLShapedArrayProtocol {
    public init(repeating value: Scalar, shape: [Int]) { stub() }
    public init<S: Sequence>(scalars: S, shape: [Int]) where S.Element == Scalar { stub() }
    public subscript(indices: Int...) -> MLShapedArraySlice<Scalar> { stub() }
    public var scalars: [Scalar] { stub() }
}

public struct MLShapedArray<Scalar: MLShapedArrayScalar>: MLShapedArrayProtocol { public var shape: [Int] { stub() } }
public struct MLShapedArraySlice<Scalar: MLShapedArrayScalar>: MLShapedArrayProtocol { public var shape: [Int] { stub() } }

func stub() -> Never { fatalError("only for the type checker") }
