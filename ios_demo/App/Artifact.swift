import CryptoKit
import Foundation
import MobileExportCore

/// An artifact folder on this device.
struct Artifact: Identifiable {
    let folder: URL
    let manifest: Manifest

    /// - Throws: `Failure`: no artifact, or one of another version.
    init(folder: URL) throws {
        self.folder = folder
        manifest = try Manifest.read(folder: folder)
    }

    var id: String { folder.path }
    var name: String { folder.lastPathComponent }

    /// What the runtime is given: a .pte file, or a Core ML package.
    var model: URL { folder.appending(path: manifest.file) }

    /// Holds every file against its digest.
    ///
    /// - Throws: `Failure`: one is missing or was changed.
    func checkFiles() throws {
        for file in manifest.files {
            let path = folder.appending(path: file.name)
            guard let reader = try? FileHandle(forReadingFrom: path) else {
                throw Failure("\(name)/\(file.name)", "named by the manifest, and not there", "copy the whole folder again")
            }
            defer { try? reader.close() }
            var hash = SHA256()
            while let piece = try reader.read(upToCount: 1 << 20), !piece.isEmpty { hash.update(data: piece) }
            let digest = hash.finalize().map { String(format: "%02x", $0) }.joined()
            guard digest == file.sha256 else {
                throw Failure("\(name)/\(file.name)", "is not what was exported", "copy the whole folder again")
            }
        }
    }
}

/// The app's own folder, which Finder and the Files app show: every folder in it may be an artifact.
enum Shelf {
    static var folder: URL { .documentsDirectory }

    /// The artifacts, by name, and a line for every folder that has a manifest which cannot be read.
    static func contents() -> (artifacts: [Artifact], complaints: [String]) {
        let files = FileManager.default
        let folders = (try? files.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
        var artifacts: [Artifact] = []
        var complaints: [String] = []
        for folder in folders.sorted(by: { $0.lastPathComponent < $1.lastPathComponent }) {
            guard files.fileExists(atPath: folder.appending(path: Manifest.name).path) else { continue }
            do {
                artifacts.append(try Artifact(folder: folder))
            } catch {
                complaints.append(error.localizedDescription)
            }
        }
        return (artifacts, complaints)
    }

    /// Copies a folder the user picked. What is there under its name is replaced once the copy is whole.
    ///
    /// - Throws: `Failure`: no artifact, or one that was changed on its way; or what the file system says.
    static func bring(_ picked: URL) throws {
        guard picked.startAccessingSecurityScopedResource() else {
            throw Failure(picked.lastPathComponent, "may not be read", "pick it again")
        }
        defer { picked.stopAccessingSecurityScopedResource() }
        _ = try Artifact(folder: picked)
        let files = FileManager.default
        let copy = files.temporaryDirectory.appending(path: UUID().uuidString).appending(path: picked.lastPathComponent)
        try files.createDirectory(at: copy.deletingLastPathComponent(), withIntermediateDirectories: true)
        defer { try? files.removeItem(at: copy.deletingLastPathComponent()) }
        try files.copyItem(at: picked, to: copy)
        try Artifact(folder: copy).checkFiles()
        let place = folder.appending(path: picked.lastPathComponent)
        if files.fileExists(atPath: place.path) { try files.removeItem(at: place) }
        try files.moveItem(at: copy, to: place)
    }
}
