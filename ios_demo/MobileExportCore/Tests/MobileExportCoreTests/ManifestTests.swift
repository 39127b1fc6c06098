import XCTest

@testable import MobileExportCore

final class ManifestTests: XCTestCase {
    private func failure(_ text: String) -> String {
        do {
            _ = try ModelFacts(Manifest.read(Data(text.utf8)))
            return "it was read"
        } catch {
            return "\(error)"
        }
    }

    /// A real manifest as plain values, to be damaged.
    private func values() throws -> [String: Any] {
        let folder = String(Golden.repository) + "/tests/golden/manifests"
        let name = try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.hasSuffix(".json") }.sorted()[0]
        return try XCTUnwrap(JSONSerialization.jsonObject(with: Golden.data("manifests/" + name)) as? [String: Any])
    }

    private func text(_ values: [String: Any]) throws -> String {
        String(decoding: try JSONSerialization.data(withJSONObject: values), as: UTF8.self)
    }

    func testEveryRealManifestIsRead() throws {
        let folder = String(Golden.repository) + "/tests/golden/manifests"
        let names = try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.hasSuffix(".json") }
        XCTAssertFalse(names.isEmpty)
        for name in names {
            let manifest = try Manifest.read(Golden.data("manifests/" + name), place: name)
            XCTAssertFalse(manifest.matrices.keys.filter { $0.contains(".") }.isEmpty, "names of matrices stay as they are")
            if manifest.format != "onnx" { _ = try ModelFacts(manifest) }
        }
    }

    func testWhatIsNoManifestIsOneLine() throws {
        XCTAssertEqual(failure("{"), "manifest.json: not JSON; export the artifact again")
        XCTAssertEqual(failure("{}"), "manifest.json: no schema_version; export the artifact again")
        let older = "manifest.json: schema_version 4, this app reads 5; export the artifact again"
        XCTAssertEqual(failure("{\"schema_version\": 4}"), older)
        var damaged = try values()
        damaged["max_context"] = "long"
        XCTAssertEqual(failure(try text(damaged)), "manifest.json: max_context: not of its type; export the artifact again")
        damaged = try values()
        damaged["max_context"] = 7
        XCTAssertTrue(failure(try text(damaged)).contains("kv_cache.bytes_at_max_context is "))
        damaged = try values()
        damaged["matrices"] = ["blocks.0.nose.weight": "float32"]
        XCTAssertTrue(failure(try text(damaged)).contains("no graph has blocks.0.nose.weight"))
        damaged["matrices"] = ["blocks.0.ffn.o.weight": "3.5-bit"]
        XCTAssertTrue(failure(try text(damaged)).contains("blocks.0.ffn.o.weight is 3.5-bit"))
        damaged = try values()
        damaged["pte"] = NSNull()
        damaged["coreml"] = NSNull()
        XCTAssertTrue(failure(try text(damaged)).contains("this app runs .pte and Core ML"))
    }

    func testSizesThatNoModelHasAreRefused() throws {
        for (name, size) in [("hidden_size", Int.max), ("head_dim", -4), ("num_key_value_heads", 0), ("vocab_size", 1 << 40)] {
            var damaged = try values()
            var spec = try XCTUnwrap(damaged["spec"] as? [String: Any])
            spec[name] = size
            damaged["spec"] = spec
            XCTAssertEqual(failure(try text(damaged)), "manifest.json: spec.\(name) is \(size); export the artifact again")
        }
        var damaged = try values()
        damaged["matrices"] = ["blocks.0.ffn.o.weight": "4-bit, group 0"]
        XCTAssertTrue(failure(try text(damaged)).contains("blocks.0.ffn.o.weight is 4-bit, group 0"))
        damaged = try values()
        damaged["chat"] = ["opening": "", "system": ["one"], "assistant": ["a", "b"], "answer": ""]
        XCTAssertTrue(failure(try text(damaged)).contains("chat: system and assistant are two texts each"))
    }

    func testAFolderWithoutOneSaysSo() {
        XCTAssertThrowsError(try Manifest.read(folder: URL(fileURLWithPath: "/nowhere/out"))) { error in
            XCTAssertEqual("\(error)", "out: no manifest.json in it; pick a folder that mobile-export wrote")
        }
    }
}
