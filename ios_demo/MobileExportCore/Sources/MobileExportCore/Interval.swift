/// A quantity that is not known exactly: low <= likely <= high, all in one unit.
public struct Interval: Equatable, Sendable {
    public let low: Double
    public let likely: Double
    public let high: Double

    public init(_ low: Double, _ likely: Double, _ high: Double) {
        precondition(low <= likely && likely <= high, "low <= likely <= high")
        self.low = low
        self.likely = likely
        self.high = high
    }

    /// A quantity that is known.
    public init(exactly value: Double) {
        self.init(value, value, value)
    }

    public static let nothing = Interval(exactly: 0)

    public static func + (a: Interval, b: Interval) -> Interval {
        Interval(a.low + b.low, a.likely + b.likely, a.high + b.high)
    }

    /// Most of it where most is there and least is taken.
    public func minus(_ other: Interval) -> Interval {
        Interval(low - other.high, likely - other.likely, high - other.low)
    }

    /// Scaled by a factor of 0 or more.
    public func times(_ factor: Double) -> Interval {
        Interval(low * factor, likely * factor, high * factor)
    }

    /// The larger one, end by end.
    public func largest(_ other: Interval) -> Interval {
        Interval(max(low, other.low), max(likely, other.likely), max(high, other.high))
    }
}

extension Sequence where Element == Interval {
    /// The sum, each end with its like.
    public func total() -> Interval { reduce(.nothing, +) }
}
