import XCTest

@testable import MobileExportCore

final class MemoryTests: XCTestCase {
    struct Case: Decodable {
        struct TermCase: Decodable {
            let name: String
            let dirtyBytes: [Double]
            let cleanBytes: [Double]
            let when: String
            let why: String
        }

        let manifest: String
        let context: Int?
        let promptChunk: Int?
        let packedFile: Bool
        let terms: [TermCase]
        let peakBytes: [Double]
        let peakDirtyBytes: [Double]
    }

    func testEveryTermIsThatOfTheBudget() throws {
        for one in try Golden.cases("memory.json", of: Case.self) {
            let facts = try Golden.facts(one.manifest)
            let memory = MemoryEstimate(facts, context: one.context, promptChunk: one.promptChunk, packedFile: one.packedFile)
            XCTAssertEqual(memory.terms.map(\.name), one.terms.map(\.name), one.manifest)
            for (found, wanted) in zip(memory.terms, one.terms) {
                assertEqual(found.dirty, wanted.dirtyBytes, "\(one.manifest): \(wanted.name), dirty")
                assertEqual(found.clean, wanted.cleanBytes, "\(one.manifest): \(wanted.name), clean")
                XCTAssertEqual(found.moment.rawValue, wanted.when, "\(one.manifest): \(wanted.name)")
                XCTAssertEqual(found.why, wanted.why, one.manifest)
            }
            assertEqual(memory.peak, one.peakBytes, one.manifest)
            assertEqual(memory.peakDirty, one.peakDirtyBytes, one.manifest)
        }
    }
}
