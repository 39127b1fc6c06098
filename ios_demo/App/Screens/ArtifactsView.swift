import Foundation
import MobileExportCore
import SwiftUI
import UniformTypeIdentifiers

/// The artifacts on this device; the system's picker brings others.
struct ArtifactsView: View {
    @State private var artifacts: [Artifact] = []
    @State private var complaints: [String] = []
    @State private var picking = false
    @State private var copying = false

    var body: some View {
        List {
            Section("Artifacts") {
                ForEach(artifacts) { artifact in
                    NavigationLink {
                        CheckView(artifact: artifact)
                    } label: {
                        VStack(alignment: .leading) {
                            Text(artifact.name)
                            Text(facts(artifact.manifest)).font(.caption).foregroundStyle(.secondary)
                        }
                    }
                }
                if artifacts.isEmpty {
                    Text("None here. Copy a folder that mobile-export wrote into this app's folder, or pick one.")
                }
            }
            if !complaints.isEmpty {
                Section("Not read") {
                    ForEach(complaints, id: \.self) { Text($0).font(.caption) }
                }
            }
            Button("Pick a folder") { picking = true }.disabled(copying)
            if copying { ProgressView("Copying and checking") }
        }
        .navigationTitle("mobile-export")
        .onAppear { look() }
        .fileImporter(isPresented: $picking, allowedContentTypes: [.folder]) { picked in
            copying = true
            Task {
                let complaint = await bring(picked)
                copying = false
                look()
                if let complaint { complaints.append(complaint) }
            }
        }
    }

    private func look() {
        (artifacts, complaints) = Shelf.contents()
    }

    private func facts(_ manifest: Manifest) -> String {
        "\(manifest.source), \(manifest.package == nil ? manifest.format : "Core ML"), recipe \(manifest.recipe.name)"
    }
}

/// Copies off the main thread; gives what went wrong.
private func bring(_ picked: Result<URL, any Error>) async -> String? {
    await Task.detached {
        do {
            try Shelf.bring(picked.get())
            return nil
        } catch {
            return error.localizedDescription
        }
    }.value
}
