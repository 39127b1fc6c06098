import Foundation
import XCTest

@testable import MobileExportCore

/// tests/golden of the repository: what mobile-export itself computed. Python rewrites the files and reads them in its tests;
/// the Android app's tests read them, too.
enum Golden {
    static let repository = URL(fileURLWithPath: #filePath).pathComponents.dropLast(5).joined(separator: "/").dropFirst()

    static func data(_ name: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: repository + "/tests/golden/" + name))
    }

    static func cases<Case: Decodable>(_ name: String, of: Case.Type) throws -> [Case] {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let cases = try decoder.decode([Case].self, from: data(name))
        XCTAssertFalse(cases.isEmpty, name)
        return cases
    }

    static func facts(_ manifest: String) throws -> ModelFacts {
        try ModelFacts(Manifest.read(data("manifests/" + manifest), place: manifest))
    }
}

/// Equal but for the rounding of sums taken in another order.
func assertEqual(_ found: Interval, _ wanted: [Double], _ what: String, file: StaticString = #filePath, line: UInt = #line) {
    for (found, wanted) in zip([found.low, found.likely, found.high], wanted) {
        XCTAssertEqual(found, wanted, accuracy: 1e-9 * abs(wanted), what, file: file, line: line)
    }
    XCTAssertEqual(wanted.count, 3, what, file: file, line: line)
}
