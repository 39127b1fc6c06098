/// One reason for resident memory, in bytes.
///
/// dirty: anonymous pages, which a phone cannot take back: it kills for them. clean: pages of a file, which it drops and
/// reads again. moment: always once it is there, or only while loading, or only while running.
public struct Term: Sendable {
    public enum Moment: String, Sendable { case always, load, run }

    public let name: String
    public let dirty: Interval
    public let clean: Interval
    public let moment: Moment
    public let why: String

    init(_ name: String, dirty: Interval = .nothing, clean: Interval = .nothing, _ moment: Moment = .always, why: String) {
        self.name = name
        self.dirty = dirty
        self.clean = clean
        self.moment = moment
        self.why = why
    }

    public var bytes: Interval { dirty + clean }
}

/// What a process keeps resident for a model, as terms. Bytes.
public struct MemoryEstimate: Sendable {
    static let mib = 1_048_576.0

    public let terms: [Term]

    /// - Parameters:
    ///   - context: KV rows; nil for the model's.
    ///   - promptChunk: most tokens in one call; nil for the model's.
    ///   - packedFile: of a .pte: XNNPACK maps packed weights from a file made on an earlier start.
    public init(_ facts: ModelFacts, context: Int? = nil, promptChunk: Int? = nil, packedFile: Bool = false) {
        let rows = context ?? facts.maxContext
        let tokens = promptChunk ?? facts.promptChunk
        terms =
            facts.isCoreMl
            ? coreMlMemory(facts, context: rows, promptChunk: tokens)
            : pteMemory(facts, context: rows, promptChunk: tokens, packedFile: packedFile)
    }

    /// Most resident at any moment, dirty and clean.
    public var peak: Interval { most { $0.bytes } }

    /// Most dirty at any moment.
    public var peakDirty: Interval { most { $0.dirty } }

    /// The terms that are there at one of the two moments.
    public func during(_ moment: Term.Moment) -> [Term] {
        terms.filter { $0.moment == .always || $0.moment == moment }
    }

    private func most(_ of: (Term) -> Interval) -> Interval {
        during(.load).map(of).total().largest(during(.run).map(of).total())
    }
}
