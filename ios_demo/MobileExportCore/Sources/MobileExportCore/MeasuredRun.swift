/// Resident memory of a process, KiB, in the words of the runners on Linux.
///
/// rssAnonKib: dirty memory, what a phone kills for: iOS' physical footprint. rssFileKib: pages of files, which it drops and
/// reads again. pssKib: both.
public struct Resident: Decodable, Equatable, Sendable {
    public let rssAnonKib: Int
    public let rssFileKib: Int
    public let pssKib: Int

    public init(rssAnonKib: Int, rssFileKib: Int, pssKib: Int) {
        self.rssAnonKib = rssAnonKib
        self.rssFileKib = rssFileKib
        self.pssKib = pssKib
    }

    var json: JSONText {
        .object([("rss_anon_kib", .whole(rssAnonKib)), ("rss_file_kib", .whole(rssFileKib)), ("pss_kib", .whole(pssKib))])
    }
}

/// What the model made of fixed tokens: the first values, the place of the largest, and the sum of all `count`.
public struct Logits: Decodable, Equatable, Sendable {
    public let tokens: [Int]
    public let count: Int
    public let argmax: Int
    public let sum: Double
    public let values: [Double]

    init(tokens: [Int], of logits: [Float], values kept: Int) {
        self.tokens = tokens
        count = logits.count
        argmax = greatest(logits)
        sum = logits.reduce(0) { $0 + Double($1) }
        values = logits.prefix(kept).map { Double($0) }
    }

    var json: JSONText {
        .object([
            ("tokens", .wholes(tokens)), ("count", .whole(count)), ("argmax", .whole(argmax)), ("sum", .number(sum)),
            ("values", .numbers(values)),
        ])
    }
}

/// What one run measured. Seconds are wall time.
///
/// loadS: file mapped, its header read. initS: weights packed, memory planned. firstTokenS: the first prompt ever.
/// prefillS: the prompt again, one a sequence. decodeS: single tokens after it, sequence by sequence.
/// atStart: before the model is touched; atEnd: after all sequences. peakRssKib: the most ever resident.
public struct MeasuredRun: Decodable, Equatable, Sendable {
    public let runtime: String
    public let threads: Int
    public let backends: [String]
    public let loadS: Double
    public let initS: Double
    public let firstTokenS: Double
    public let promptTokens: Int
    public let prefillS: [Double]
    public let decodeS: [[Double]]
    public let atStart: Resident
    public let afterLoad: Resident
    public let afterInit: Resident
    public let atEnd: Resident
    public let peakRssKib: Int
    public let logits: Logits?

    /// The one line a runner prints, with the line's end.
    public var text: String { json.line + "\n" }

    var json: JSONText {
        .object([
            ("runtime", .text(runtime)),
            ("threads", .whole(threads)),
            ("backends", .array(backends.map { .text($0) })),
            ("load_s", .number(loadS)),
            ("init_s", .number(initS)),
            ("first_token_s", .number(firstTokenS)),
            ("prompt_tokens", .whole(promptTokens)),
            ("prefill_s", .numbers(prefillS)),
            ("decode_s", .array(decodeS.map { .numbers($0) })),
            ("at_start", atStart.json),
            ("after_load", afterLoad.json),
            ("after_init", afterInit.json),
            ("at_end", atEnd.json),
            ("peak_rss_kib", .whole(peakRssKib)),
            ("logits", logits.map { $0.json } ?? .null),
        ])
    }
}

/// The place of the largest value, the first of equals.
func greatest(_ values: [Float]) -> Int {
    var best = 0
    for (place, value) in values.enumerated() where value > values[best] { best = place }
    return best
}
