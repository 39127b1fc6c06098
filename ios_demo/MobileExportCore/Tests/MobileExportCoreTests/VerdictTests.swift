import XCTest

@testable import MobileExportCore

final class VerdictTests: XCTestCase {
    struct Case: Decodable {
        struct AnswerCase: Decodable {
            let limit: String
            let neededBytes: [Double]
            let allowedBytes: [Double]
            let outcome: String
            let reason: String
        }

        let name: String
        let manifest: String
        let dramBytes: [Double]
        let appLimitBytes: [Double]?
        let reserveBytes: [Double]?
        let share: Double
        let maxMemoryBytes: Double?
        let outcome: String
        let answers: [AnswerCase]
    }

    func testEveryVerdictIsThatOfCheck() throws {
        for one in try Golden.cases("device.json", of: Case.self) {
            let target = Target(
                name: one.name, dram: interval(one.dramBytes), appLimit: one.appLimitBytes.map(interval),
                reserve: one.reserveBytes.map(interval))
            let memory = MemoryEstimate(try Golden.facts(one.manifest))
            let verdict = Verdict(memory, target, share: one.share, maxMemory: one.maxMemoryBytes)
            XCTAssertEqual(verdict.outcome.rawValue, one.outcome, one.name)
            XCTAssertEqual(verdict.answers.map(\.limit), one.answers.map(\.limit), one.name)
            for (found, wanted) in zip(verdict.answers, one.answers) {
                assertEqual(found.needed, wanted.neededBytes, "\(one.name): \(wanted.limit), needed")
                assertEqual(found.allowed, wanted.allowedBytes, "\(one.name): \(wanted.limit), allowed")
                XCTAssertEqual(found.outcome.rawValue, wanted.outcome, one.name)
                XCTAssertEqual(found.reason, wanted.reason, one.name)
            }
        }
    }

    private func interval(_ ends: [Double]) -> Interval { Interval(ends[0], ends[1], ends[2]) }
}
