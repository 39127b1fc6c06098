import XCTest

@testable import MobileExportCore

final class ProfileTests: XCTestCase {
    struct Runs: Decodable {
        let measurements: [MeasuredRun]
    }

    /// mobile-export's own tests read what is written here.
    func testItIsWrittenForMobileExport() throws {
        let runs = try XCTUnwrap(Golden.cases("statistics.json", of: Runs.self).last).measurements
        let manifest = try Manifest.read(Golden.data("manifests/coreml-stock.json"))
        let device = Profile.Device(system: "iOS 18.0", model: "iPhone17,1", cores: 6, memoryMib: 7680)
        let profile = Profile(
            manifest: manifest, artifact: "out", tool: "mobile-export iOS demo", device: device, newTokens: 120, runs: runs)
        XCTAssertEqual(profile.summary, AtThreads(runs))
        let values = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(profile.text.utf8)) as? [String: Any])
        XCTAssertEqual(values["runs"] as? Int, runs.count)
        if let file = ProcessInfo.processInfo.environment["MOBILE_EXPORT_PROFILE"] {
            try Data(profile.text.utf8).write(to: URL(fileURLWithPath: file))
        }
    }
}
