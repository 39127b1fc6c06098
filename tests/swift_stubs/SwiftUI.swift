// SwiftUI as the demo calls it. From its documentation (iOS 18.0); modifiers that give `some View` there give it here.
import Foundation
import UniformTypeIdentifiers

func stub() -> Never { fatalError("only for the type checker") }

// App

@MainActor @preconcurrency public protocol Scene {}

@MainActor @preconcurrency public protocol App {
    associatedtype Body: Scene
    @SceneBuilder var body: Body { get }
    init()
}

extension App {
    public static func main() { stub() }
}

@resultBuilder public struct SceneBuilder {
    public static func buildBlock<Content: Scene>(_ content: Content) -> Content { stub() }
}

public struct WindowGroup<Content: View>: Scene {
    nonisolated public init(@ViewBuilder content: () -> Content) { stub() }
}

// Views and how they are put together

@MainActor @preconcurrency public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

extension Never: View {
    public typealias Body = Never
    public var body: Never { stub() }
}

/// A view of the framework itself.
public protocol Primitive: View where Body == Never {}
extension Primitive { public var body: Never { stub() } }

public struct EmptyView: Primitive { public init() { stub() } }
public struct TupleView<T>: Primitive {}
public struct Conditional<Yes: View, No: View>: Primitive {}
extension Optional: View where Wrapped: View {
    public typealias Body = Never
    public var body: Never { stub() }
}

@resultBuilder public struct ViewBuilder {
    public static func buildExpression<Content: View>(_ content: Content) -> Content { stub() }
    public static func buildBlock() -> EmptyView { stub() }
    public static func buildBlock<Content: View>(_ content: Content) -> Content { stub() }
    public static func buildBlock<each Content: View>(_ content: repeat each Content) -> TupleView<(repeat each Content)> { stub() }
    public static func buildIf<Content: View>(_ content: Content?) -> Content? { stub() }
    public static func buildEither<Yes: View, No: View>(first: Yes) -> Conditional<Yes, No> { stub() }
    public static func buildEither<Yes: View, No: View>(second: No) -> Conditional<Yes, No> { stub() }
}

// State

@propertyWrapper public struct State<Value> {
    public init(wrappedValue value: Value) { stub() }
    public var wrappedValue: Value { get { stub() } nonmutating set { stub() } }
    public var projectedValue: Binding<Value> { stub() }
}

extension State where Value: ExpressibleByNilLiteral {
    public init() { stub() }
}

@propertyWrapper @dynamicMemberLookup public struct Binding<Value> {
    public init(get: @escaping () -> Value, set: @escaping (Value) -> Void) { stub() }
    public var wrappedValue: Value { get { stub() } nonmutating set { stub() } }
    public var projectedValue: Binding<Value> { stub() }
    public subscript<Subject>(dynamicMember keyPath: WritableKeyPath<Value, Subject>) -> Binding<Subject> { stub() }
}

// Text

public protocol _FormatSpecifiable {}
extension Int: _FormatSpecifiable {}
extension Double: _FormatSpecifiable {}

/// Takes strings and numbers, and no other values.
public struct LocalizedStringKey: ExpressibleByStringInterpolation {
    public init(stringLiteral value: String) { stub() }
    public init(stringInterpolation: StringInterpolation) { stub() }

    public struct StringInterpolation: StringInterpolationProtocol {
        public init(literalCapacity: Int, interpolationCount: Int) { stub() }
        public mutating func appendLiteral(_ literal: String) { stub() }
        public mutating func appendInterpolation(_ string: String) { stub() }
        public mutating func appendInterpolation<T: _FormatSpecifiable>(_ value: T) { stub() }
    }
}

public struct Text: Primitive {
    public init(_ key: LocalizedStringKey) { stub() }
    @_disfavoredOverload public init<S: StringProtocol>(_ content: S) { stub() }
    public func font(_ font: Font?) -> Text { stub() }
    public func foregroundStyle<S: ShapeStyle>(_ style: S) -> Text { stub() }
    public func monospacedDigit() -> Text { stub() }
}

public struct Font: Sendable { public static var caption: Font { stub() } }
public protocol ShapeStyle: Sendable {}
public struct Color: ShapeStyle {
    public static var primary: Color { stub() }
    public static var secondary: Color { stub() }
    public static var red: Color { stub() }
}

public struct HierarchicalShapeStyle: ShapeStyle {}
extension ShapeStyle where Self == HierarchicalShapeStyle { public static var secondary: HierarchicalShapeStyle { stub() } }
extension ShapeStyle where Self == Color { public static var red: Color { stub() } }

public protocol TextSelectability {}
public struct EnabledTextSelectability: TextSelectability {}
extension TextSelectability where Self == EnabledTextSelectability { public static var enabled: EnabledTextSelectability { stub() } }

// Layout

public enum HorizontalAlignment { case leading, center, trailing }
public struct VStack<Content: View>: Primitive {
    public init(alignment: HorizontalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> Content) { stub() }
}
public struct LazyVStack<Content: View>: Primitive {
    public init(alignment: HorizontalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> Content) { stub() }
}
public struct HStack<Content: View>: Primitive {
    public init(spacing: CGFloat? = nil, @ViewBuilder content: () -> Content) { stub() }
}
public struct ScrollView<Content: View>: Primitive { public init(@ViewBuilder content: () -> Content) { stub() } }
public struct Spacer: Primitive { public init(minLength: CGFloat? = nil) { stub() } }
public struct List<Content: View>: Primitive { public init(@ViewBuilder content: () -> Content) { stub() } }
public struct Section<Content: View>: Primitive {
    public init(_ titleKey: LocalizedStringKey, @ViewBuilder content: () -> Content) { stub() }
    @_disfavoredOverload public init<S: StringProtocol>(_ title: S, @ViewBuilder content: () -> Content) { stub() }
}

public struct ForEach<Data: RandomAccessCollection, ID: Hashable, Content: View>: Primitive {
    public init(_ data: Data, id: KeyPath<Data.Element, ID>, @ViewBuilder content: @escaping (Data.Element) -> Content) { stub() }
}

extension ForEach where Data.Element: Identifiable, ID == Data.Element.ID {
    public init(_ data: Data, @ViewBuilder content: @escaping (Data.Element) -> Content) { stub() }
}

// Controls

public struct NavigationStack<Root: View>: Primitive { public init(@ViewBuilder root: () -> Root) { stub() } }
public struct NavigationLink<Label: View, Destination: View>: Primitive {
    public init(@ViewBuilder destination: () -> Destination, @ViewBuilder label: () -> Label) { stub() }
}

extension NavigationLink where Label == Text {
    public init(_ titleKey: LocalizedStringKey, @ViewBuilder destination: () -> Destination) { stub() }
}

public struct Button<Label: View>: Primitive {}
extension Button where Label == Text {
    public init(_ titleKey: LocalizedStringKey, action: @escaping @MainActor () -> Void) { stub() }
}

public struct TextField: Primitive { public init(_ titleKey: LocalizedStringKey, text: Binding<String>) { stub() } }
public struct Stepper: Primitive {
    public init<V: Strideable>(
        _ titleKey: LocalizedStringKey, value: Binding<V>, in bounds: ClosedRange<V>, step: V.Stride = 1,
        onEditingChanged: @escaping (Bool) -> Void = { _ in }
    ) { stub() }
}
public struct Picker<SelectionValue: Hashable, Content: View>: Primitive {
    public init(_ titleKey: LocalizedStringKey, selection: Binding<SelectionValue>, @ViewBuilder content: () -> Content) { stub() }
}
public struct ProgressView: Primitive {
    public init(_ titleKey: LocalizedStringKey) { stub() }
    @_disfavoredOverload public init<S: StringProtocol>(_ title: S) { stub() }
}
public struct ShareLink: Primitive {
    public init(_ titleKey: LocalizedStringKey, item: URL, subject: Text? = nil, message: Text? = nil) { stub() }
}

// Modifiers

extension View {
    nonisolated public func navigationTitle(_ titleKey: LocalizedStringKey) -> some View { Modified() }
    @_disfavoredOverload nonisolated public func navigationTitle<S: StringProtocol>(_ title: S) -> some View { Modified() }
    nonisolated public func toolbar<Content: View>(@ViewBuilder content: () -> Content) -> some View { Modified() }
    nonisolated public func padding(_ length: CGFloat) -> some View { Modified() }
    nonisolated public func padding() -> some View { Modified() }
    nonisolated public func font(_ font: Font?) -> some View { Modified() }
    nonisolated public func foregroundStyle<S: ShapeStyle>(_ style: S) -> some View { Modified() }
    nonisolated public func textSelection<S: TextSelectability>(_ selectability: S) -> some View { Modified() }
    nonisolated public func disabled(_ disabled: Bool) -> some View { Modified() }
    nonisolated public func tag<V: Hashable>(_ tag: V, includeOptional: Bool = true) -> some View { Modified() }
    nonisolated public func onSubmit(_ action: @escaping () -> Void) -> some View { Modified() }
    nonisolated public func onAppear(perform action: (() -> Void)? = nil) -> some View { Modified() }
    nonisolated public func onDisappear(perform action: (() -> Void)? = nil) -> some View { Modified() }
    nonisolated public func task(
        priority: TaskPriority = .userInitiated, @_inheritActorContext _ action: @escaping @Sendable () async -> Void
    ) -> some View { Modified() }
    nonisolated public func fileImporter(
        isPresented: Binding<Bool>, allowedContentTypes: [UTType], onCompletion: @escaping (Result<URL, any Error>) -> Void
    ) -> some View { Modified() }
}

struct Modified: Primitive {
    nonisolated init() { stub() }
}
