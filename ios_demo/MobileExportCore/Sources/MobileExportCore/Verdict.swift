import Foundation

/// What a phone has, in bytes. appLimit: most dirty memory the system grants; reserve: what it keeps to itself.
public struct Target: Sendable {
    public let name: String
    public let dram: Interval
    public let appLimit: Interval?
    public let reserve: Interval?

    public init(name: String, dram: Interval, appLimit: Interval? = nil, reserve: Interval? = nil) {
        self.name = name
        self.dram = dram
        self.appLimit = appLimit
        self.reserve = reserve
    }
}

public enum Outcome: String, Sendable {
    case fits
    case uncertain
    case doesNotFit = "does not fit"
}

/// One limit: what is needed, what is allowed, and whether the one lies within the other, whatever is not known.
public struct Answer: Sendable {
    public let limit: String
    public let needed: Interval
    public let allowed: Interval

    public var outcome: Outcome {
        if needed.high <= allowed.low { return .fits }
        return needed.low > allowed.high ? .doesNotFit : .uncertain
    }

    /// "memory 182 (160 to 210) MiB, 614 allowed"
    public var reason: String { "\(limit) \(words(needed)) MiB, \(words(allowed)) allowed" }
}

/// Every limit answered by itself, the phone by the worst of them.
public struct Verdict: Sendable {
    public static let usualShare = 0.1  // of the DRAM: what an app should stay within (MobileLLM, arXiv:2402.14905)

    public let answers: [Answer]

    /// - Parameter maxMemory: bytes allowed instead of a share of the DRAM.
    public init(_ memory: MemoryEstimate, _ target: Target, share: Double = usualShare, maxMemory: Double? = nil) {
        let allowed = maxMemory.map { Interval(exactly: $0) } ?? target.dram.times(share)
        var answers = [Answer(limit: "memory", needed: memory.peak, allowed: allowed)]
        if let limit = target.appLimit {
            answers.append(Answer(limit: "app limit", needed: memory.peakDirty, allowed: limit))
        }
        if let reserve = target.reserve {
            answers.append(Answer(limit: "left by the system", needed: memory.peak, allowed: target.dram.minus(reserve)))
        }
        self.answers = answers
    }

    public var outcome: Outcome {
        let outcomes = answers.map(\.outcome)
        return [.doesNotFit, .uncertain].first { outcomes.contains($0) } ?? .fits
    }
}

/// MiB: "182 (160 to 210)", or one number where nothing is unknown.
private func words(_ bytes: Interval) -> String {
    let (likely, low, high) = (whole(bytes.likely), whole(bytes.low), whole(bytes.high))
    return likely == low && low == high ? likely : "\(likely) (\(low) to \(high))"
}

/// Whole MiB with commas between thousands.
private func whole(_ bytes: Double) -> String {
    let text = String(format: "%.0f", bytes / MemoryEstimate.mib)
    let digits = Array(text.drop { $0 == "-" })
    var grouped = text.hasPrefix("-") ? "-" : ""
    for (place, digit) in digits.enumerated() {
        if place > 0 && (digits.count - place) % 3 == 0 { grouped.append(",") }
        grouped.append(digit)
    }
    return grouped
}
