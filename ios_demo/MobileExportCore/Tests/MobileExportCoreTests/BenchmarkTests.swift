import XCTest

@testable import MobileExportCore

/// A model that writes down how it is called, and whose logits name the next token. Every call takes a second of its clock.
final class Counting: Program {
    struct Broken: Error {}

    let runtime = "counting 1"
    let backends = ["none"]
    let threads = 1
    var calls: [String] = []
    var seconds = 0.0
    var context = Int.max
    var ending: Int?

    func load() { note("load") }
    func initialise() { note("initialise") }

    func logits(of tokens: [Int], at start: Int) throws -> [Float] {
        note("\(tokens)@\(start)")
        guard start + tokens.count <= context else { throw Broken() }
        var logits = [Float](repeating: -1, count: 16)
        logits[(tokens.last! + 1) % 16] = 1.5
        return logits
    }

    private func note(_ call: String) {
        calls.append(call)
        seconds += 1
    }
}

final class BenchmarkTests: XCTestCase {
    private var reading = 0

    private func gauge() -> MemoryGauge {
        MemoryGauge(
            resident: {
                self.reading += 100
                return Resident(rssAnonKib: self.reading, rssFileKib: 7, pssKib: self.reading + 7)
            }, peakKib: { 999 })
    }

    func testTheSequenceIsTheRunnersOnLinux() throws {
        let model = Counting()
        var job = Job()
        (job.promptTokens, job.newTokens, job.sequences, job.warmUp, job.logitsOf) = (3, 2, 1, 1, [3, 4])
        let found = try job.run(model, vocabulary: 5, memory: gauge(), now: { model.seconds })
        let sequence = ["[3, 4, 0]@0", "[3]@3", "[4]@4"]
        XCTAssertEqual(model.calls, ["load", "initialise", "[3, 4, 0]@0"] + sequence + sequence + ["[3, 4]@0"])
        XCTAssertEqual(found.decodeS, [[1, 1]])
        XCTAssertEqual(found.prefillS, [1])
        XCTAssertEqual([found.loadS, found.initS, found.firstTokenS], [1, 1, 1])
        let resident = [found.atStart, found.afterLoad, found.afterInit, found.atEnd].map(\.rssAnonKib)
        XCTAssertEqual(resident, [100, 200, 300, 400])
        XCTAssertEqual(found.peakRssKib, 999)
        XCTAssertEqual(found.logits?.argmax, 5)
        XCTAssertEqual(found.logits?.sum, 1.5 - 15)
        XCTAssertEqual(found.logits?.values, [-1, -1, -1, -1, -1, 1.5, -1, -1])
    }

    func testItStopsWhenAsked() {
        let model = Counting()
        XCTAssertThrowsError(
            try Job().run(model, vocabulary: 5, memory: gauge(), stop: { model.calls.count == 4 })
        ) { XCTAssertTrue($0 is CancellationError) }
        XCTAssertEqual(model.calls.count, 4)
    }

    func testNothingToMeasureIsRefused() {
        var job = Job()
        job.newTokens = 0
        XCTAssertThrowsError(try job.run(Counting(), vocabulary: 5, memory: gauge()))
    }
}

final class AnsweringTests: XCTestCase {
    private func answering(_ model: Counting, context: Int = 100, ends: [Int] = [9]) -> Answering {
        Answering(model, context: context, ends: ends) { $0.map { "<\($0)>" }.joined() }
    }

    func testItStreamsUntilTheModelEnds() throws {
        let model = Counting()
        var said: [String] = []
        let times = try answering(model).answer([4, 5], most: 50, now: { model.seconds }) { said.append($0) }
        XCTAssertEqual(said, ["<6>", "<7>", "<8>"])
        XCTAssertEqual(model.calls, ["[4, 5]@0", "[6]@2", "[7]@3", "[8]@4"])
        XCTAssertEqual(times, AnswerTimes(promptTokens: 2, newTokens: 3, firstTokenS: 1, tokensPerS: 2.0 / 3.0, ended: true))
    }

    func testTheNextTurnReadsOnlyWhatIsNew() throws {
        let model = Counting()
        let answering = answering(model)
        _ = try answering.answer([4, 5], most: 2) { _ in }
        model.calls = []
        _ = try answering.answer([4, 5, 6, 7, 1], most: 1) { _ in }
        XCTAssertEqual(model.calls, ["[7, 1]@3"])
        model.calls = []
        _ = try answering.answer([4, 5, 2, 2, 2, 2], most: 1) { _ in }
        XCTAssertEqual(model.calls, ["[4, 5, 2, 2, 2, 2]@0"], "another text is begun anew")
    }

    func testAfterAFailureTheTextIsBegunAnew() throws {
        let model = Counting()
        let answering = answering(model)
        _ = try answering.answer([4, 5], most: 2) { _ in }
        model.context = 1
        XCTAssertThrowsError(try answering.answer([4, 5, 6, 7], most: 1) { _ in })
        model.context = 100
        model.calls = []
        _ = try answering.answer([4, 5, 6, 7], most: 1) { _ in }
        XCTAssertEqual(model.calls, ["[4, 5, 6, 7]@0"])
    }

    func testItEndsAtTheContextAndWhenStopped() throws {
        let model = Counting()
        model.context = 4
        let full = try answering(model, context: 4).answer([1, 2], most: 50) { _ in }
        XCTAssertEqual([full.newTokens, full.ended ? 1 : 0], [3, 0])
        let stopped = try answering(Counting()).answer([1, 2], most: 50, stop: { true }) { _ in }
        XCTAssertEqual(stopped.newTokens, 1)
        XCTAssertNil(stopped.tokensPerS)
    }

    func testAPromptWithoutRoomIsOneLine() {
        XCTAssertThrowsError(try answering(Counting(), context: 2).answer([1, 2], most: 1) { _ in }) { error in
            let line = "prompt: 2 tokens, the model holds 2; begin a new chat, or export with a longer --max-context"
            XCTAssertEqual("\(error)", line)
        }
        XCTAssertThrowsError(try answering(Counting()).answer([], most: 1) { _ in })
    }

    func testACharacterIsToldOnceItIsWhole() {
        let bytes: [UInt8] = Array("né€".utf8)
        var stream = TextStream { tokens in String(decoding: tokens.map { bytes[$0] }, as: UTF8.self) }
        XCTAssertEqual(bytes.indices.map { stream.add($0) }, ["n", "", "é", "", "", "€"])
    }
}
