/// A quantity over runs.
public struct Spread: Decodable, Equatable, Sendable {
    public let median: Double
    public let least: Double
    public let largest: Double

    init(_ values: [Double]) {
        median = medianOf(values)
        least = values.min()!
        largest = values.max()!
    }

    var json: JSONText { .object([("median", .number(median)), ("least", .number(least)), ("largest", .number(largest))]) }
}

/// Resident MiB of the process above what it held before it touched the model, medians over runs.
public struct Memory: Decodable, Equatable, Sendable {
    public let dirtyAfterLoadMib: Double
    public let dirtyAfterInitMib: Double
    public let dirtyAtEndMib: Double
    public let cleanAtEndMib: Double
    public let pssAtEndMib: Double
    public let peakRssMib: Double

    init(_ runs: [MeasuredRun]) {
        func mib(_ kib: (MeasuredRun) -> Int) -> Double { medianOf(runs.map { Double(kib($0)) }) / 1024 }
        dirtyAfterLoadMib = mib { $0.afterLoad.rssAnonKib - $0.atStart.rssAnonKib }
        dirtyAfterInitMib = mib { $0.afterInit.rssAnonKib - $0.atStart.rssAnonKib }
        dirtyAtEndMib = mib { $0.atEnd.rssAnonKib - $0.atStart.rssAnonKib }
        cleanAtEndMib = mib { $0.atEnd.rssFileKib - $0.atStart.rssFileKib }
        pssAtEndMib = mib { $0.atEnd.pssKib }
        peakRssMib = mib { $0.peakRssKib }
    }

    var json: JSONText {
        .object([
            ("dirty_after_load_mib", .number(dirtyAfterLoadMib)),
            ("dirty_after_init_mib", .number(dirtyAfterInitMib)),
            ("dirty_at_end_mib", .number(dirtyAtEndMib)),
            ("clean_at_end_mib", .number(cleanAtEndMib)),
            ("pss_at_end_mib", .number(pssAtEndMib)),
            ("peak_rss_mib", .number(peakRssMib)),
        ])
    }
}

/// What runs at one number of threads gave: the numbers of profile.json.
///
/// slowTokenS: the 99th percentile of a run's single tokens. Rates are of medians within a run.
public struct AtThreads: Decodable, Equatable, Sendable {
    public let threads: Int
    public let loadS: Spread
    public let initS: Spread
    public let firstTokenS: Spread
    public let prefillTokensPerS: Spread
    public let decodeTokensPerS: Spread
    public let slowTokenS: Spread
    public let memory: Memory

    public init(_ runs: [MeasuredRun]) {
        threads = runs[0].threads
        loadS = Spread(runs.map(\.loadS))
        initS = Spread(runs.map(\.initS))
        firstTokenS = Spread(runs.map(\.firstTokenS))
        prefillTokensPerS = Spread(runs.map { Double($0.promptTokens) / medianOf($0.prefillS) })
        decodeTokensPerS = Spread(runs.map { 1 / medianOf($0.decodeS.flatMap { $0 }) })
        slowTokenS = Spread(
            runs.map { run in
                let tokens = run.decodeS.flatMap { $0 }.sorted()
                return tokens[Int(0.99 * Double(tokens.count))]
            })
        memory = Memory(runs)
    }

    var json: JSONText {
        .object([
            ("threads", .whole(threads)),
            ("load_s", loadS.json),
            ("init_s", initS.json),
            ("first_token_s", firstTokenS.json),
            ("prefill_tokens_per_s", prefillTokensPerS.json),
            ("decode_tokens_per_s", decodeTokensPerS.json),
            ("slow_token_s", slowTokenS.json),
            ("memory", memory.json),
        ])
    }
}

/// The middle one of some values, the mean of the middle two where their number is even.
func medianOf(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    let middle = sorted.count / 2
    return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
