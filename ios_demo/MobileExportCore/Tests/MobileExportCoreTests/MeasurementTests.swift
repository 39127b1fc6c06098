import XCTest

@testable import MobileExportCore

final class MeasurementTests: XCTestCase {
    struct Text: Decodable {
        let measurement: MeasuredRun
        let text: String
    }

    struct Runs: Decodable {
        let measurements: [MeasuredRun]
        let atThreads: AtThreads
    }

    func testTheTextIsPythonsToTheByte() throws {
        for one in try Golden.cases("profile.json", of: Text.self) {
            XCTAssertEqual(one.measurement.text, one.text)
        }
    }

    func testStatisticsAreThoseOfTheProfile() throws {
        for one in try Golden.cases("statistics.json", of: Runs.self) {
            XCTAssertEqual(AtThreads(one.measurements), one.atThreads)
        }
    }

    func testNumbersLookAsPythonWritesThem() {
        let written: [(Double, String)] = [
            (0, "0.0"), (-0.0, "-0.0"), (3, "3.0"), (-1.5, "-1.5"), (0.1 + 0.2, "0.30000000000000004"), (0.0001, "0.0001"),
            (9.999e-5, "9.999e-05"), (5e-5, "5e-05"), (1.25e-7, "1.25e-07"), (1e-100, "1e-100"),
            (123_456_789.125, "123456789.125"),
            (1e15, "1000000000000000.0"), (9_007_199_254_740_992, "9007199254740992.0"), (9.5e15, "9500000000000000.0"),
            (1e16, "1e+16"), (1.2e16, "1.2e+16"), (1e22, "1e+22"), (1.7976931348623157e308, "1.7976931348623157e+308"),
        ]
        for (value, text) in written { XCTAssertEqual(pythonText(value), text) }
    }

    func testStringsAreAscii() {
        XCTAssertEqual(JSONText.text("a\"\\\n\u{1}\u{7F}é😀").line, "\"a\\\"\\\\\\n\\u0001\\u007f\\u00e9\\ud83d\\ude00\"")
    }

    func testIndentedAsPythonDoes() {
        let inner = JSONText.object([("c", .bool(true))])
        let json = JSONText.object([("a", .wholes([1, 2])), ("b", inner), ("d", .array([])), ("e", .null)])
        let lines = [
            "{", "  \"a\": [", "    1,", "    2", "  ],", "  \"b\": {", "    \"c\": true", "  },", "  \"d\": [],",
            "  \"e\": null", "}",
        ]
        XCTAssertEqual(json.lines(), lines.joined(separator: "\n"))
    }
}
