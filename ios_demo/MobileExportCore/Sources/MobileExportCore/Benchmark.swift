import Foundation

/// A model a runtime runs. A text begins wherever a call starts at 0.
public protocol Program: AnyObject {
    /// Runtime and version, as a profile names it.
    var runtime: String { get }
    /// What computes, as the runtime names it.
    var backends: [String] { get }
    /// Threads it computes with; 0 where that is the runtime's own choice.
    var threads: Int { get }

    /// Maps the file and reads its header.
    func load() throws
    /// Packs weights and plans memory; after it the first call can come.
    func initialise() throws
    /// Logits, [vocabulary], of the last of `tokens`, which follow `start` positions: all that were run since 0.
    ///
    /// Longer prompts than a call takes go in pieces.
    func logits(of tokens: [Int], at start: Int) throws -> [Float]
}

/// What the process keeps resident, KiB, and the most it ever did.
public struct MemoryGauge {
    public let resident: () -> Resident
    public let peakKib: () -> Int

    public init(resident: @escaping () -> Resident, peakKib: @escaping () -> Int) {
        self.resident = resident
        self.peakKib = peakKib
    }
}

/// What a run is to do: a prompt, the prompt again and single tokens, that once a sequence; as every runner of mobile-export.
public struct Job: Sendable {
    public var promptTokens = 128
    public var newTokens = 64
    public var sequences = 1
    public var warmUp = 1
    public var logitsOf = Array(3..<11)
    public var logitsValues = 8

    public init() {}

    /// Runs it on a model nobody has loaded. Prompts are fixed tokens: no sampling in the time.
    ///
    /// - Parameters:
    ///   - now: seconds of a clock that only goes forward.
    ///   - progress: called before every sequence, with its number from 1 and how many they are.
    /// - Throws: `Failure`, or whatever the model throws; `CancellationError` when `stop` says so.
    public func run(
        _ program: Program,
        vocabulary: Int,
        memory: MemoryGauge,
        now: () -> Double = { ProcessInfo.processInfo.systemUptime },
        stop: () -> Bool = { false },
        progress: (Int, Int) -> Void = { _, _ in }
    ) throws -> MeasuredRun {
        guard promptTokens > 0, newTokens > 0, sequences > 0 else {
            throw Failure("benchmark", "nothing to measure", "ask for at least one token of each kind and one sequence")
        }
        func seconds(_ work: () throws -> Void) throws -> Double {
            if stop() { throw CancellationError() }
            let began = now()
            try work()
            return now() - began
        }
        func token(_ number: Int) -> Int { (Job.firstToken + number) % vocabulary }

        let prompt = (0..<promptTokens).map(token)
        let atStart = memory.resident()
        let loadS = try seconds { try program.load() }
        let afterLoad = memory.resident()
        let initS = try seconds { try program.initialise() }
        let afterInit = memory.resident()
        let firstTokenS = try seconds { _ = try program.logits(of: prompt, at: 0) }
        var prefillS: [Double] = []
        var decodeS: [[Double]] = []
        for sequence in 0..<(warmUp + sequences) {
            progress(sequence + 1, warmUp + sequences)
            let promptS = try seconds { _ = try program.logits(of: prompt, at: 0) }
            let steps = try (0..<newTokens).map { number in
                try seconds { _ = try program.logits(of: [token(number)], at: promptTokens + number) }
            }
            if sequence >= warmUp {
                prefillS.append(promptS)
                decodeS.append(steps)
            }
        }
        let atEnd = memory.resident()
        let peakKib = memory.peakKib()
        var said: Logits?
        if !logitsOf.isEmpty {
            said = Logits(tokens: logitsOf, of: try program.logits(of: logitsOf, at: 0), values: logitsValues)
        }
        return MeasuredRun(
            runtime: program.runtime, threads: program.threads, backends: program.backends, loadS: loadS, initS: initS,
            firstTokenS: firstTokenS, promptTokens: promptTokens, prefillS: prefillS, decodeS: decodeS, atStart: atStart,
            afterLoad: afterLoad, afterInit: afterInit, atEnd: atEnd, peakRssKib: peakKib, logits: said)
    }

    static let firstToken = 3
}
