import XCTest

@testable import MobileExportCore

final class PiecesTests: XCTestCase {
    func testAsManyTokensAsACallTakes() {
        XCTAssertEqual(Pieces.upTo(3, of: [1, 2, 3, 4, 5, 6, 7]), [[1, 2, 3], [4, 5, 6], [7]])
        XCTAssertEqual(Pieces.upTo(3, of: [1, 2, 3]), [[1, 2, 3]])
        XCTAssertEqual(Pieces.upTo(128, of: [1]), [[1]])
    }

    func testPaddingNeedsRowsToo() {
        let tokens = Array(1...7)
        XCTAssertEqual(Pieces.padded(of: tokens, at: 0, length: 4, context: 16), [[1, 2, 3, 4], [5, 6, 7]])
        XCTAssertEqual(Pieces.padded(of: tokens, at: 9, length: 4, context: 16), [[1, 2, 3, 4], [5], [6], [7]])
        XCTAssertEqual(Pieces.padded(of: tokens, at: 8, length: 4, context: 16), [[1, 2, 3, 4], [5, 6, 7]])
        XCTAssertEqual(Pieces.padded(of: [1], at: 15, length: 4, context: 16), [[1]])
    }
}
