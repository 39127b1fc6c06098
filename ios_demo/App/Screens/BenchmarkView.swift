import Foundation
import MobileExportCore
import SwiftUI
import UIKit

/// The benchmark of mobile-export's other runners, and its profile.json.
struct BenchmarkView: View {
    let artifact: Artifact
    let units: Units
    @State private var job = Job()
    @State private var runs = 3
    @State private var progress = ""
    @State private var complaint: String?
    @State private var profile: Profile?
    @State private var file: URL?
    @State private var measuring: Task<Void, Never>?

    var body: some View {
        List {
            Section("Measure") {
                Stepper("\(job.promptTokens) prompt tokens", value: $job.promptTokens, in: 1...longestPrompt)
                Stepper("\(job.newTokens) new tokens", value: $job.newTokens, in: 1...64)
                Stepper("\(runs) runs", value: $runs, in: 1...20)
                if measuring == nil {
                    Button("Start") { start() }
                } else {
                    ProgressView(progress)
                    Button("Stop") { measuring?.cancel() }
                }
                Text("Every run loads the model anew in this process; the first also warms the system's caches.").font(.caption)
            }
            if let complaint { Text(complaint).foregroundStyle(.red) }
            if let profile { Section("Medians") { rows(profile.summary) } }
            if let file { ShareLink("Share profile.json", item: file) }
        }
        .navigationTitle(artifact.name)
        .onAppear { job.promptTokens = min(job.promptTokens, longestPrompt) }
        .onDisappear { measuring?.cancel() }
    }

    /// The prompt and the single tokens after it share the context.
    private var longestPrompt: Int { max(1, artifact.manifest.maxContext - 64) }

    @ViewBuilder
    private func rows(_ summary: AtThreads) -> some View {
        row("load", summary.loadS.median, "s")
        row("init", summary.initS.median, "s")
        row("first token", summary.firstTokenS.median, "s")
        row("prompt", summary.prefillTokensPerS.median, "tokens/s")
        row("single tokens", summary.decodeTokensPerS.median, "tokens/s")
        row("dirty at the end", summary.memory.dirtyAtEndMib, "MiB")
        row("clean at the end", summary.memory.cleanAtEndMib, "MiB")
        Text("thermal \(ThisDevice.thermal)")
    }

    private func row(_ name: String, _ value: Double, _ unit: String) -> some View {
        HStack {
            Text(name)
            Spacer()
            Text(String(format: "%.3g ", value) + unit).monospacedDigit()
        }
    }

    private func start() {
        complaint = nil
        (profile, file) = (nil, nil)
        UIApplication.shared.isIdleTimerDisabled = true  // a screen that goes dark slows the processor down
        measuring = Task {
            do {
                progress = "checking files"
                try await Task.detached { try artifact.checkFiles() }.value
                var measured: [MeasuredRun] = []
                for run in 1...runs {
                    progress = "run \(run) of \(runs)"
                    measured.append(try await measure(artifact, units, job))
                }
                let profile = Profile(
                    manifest: artifact.manifest, artifact: artifact.name, tool: "mobile-export iOS demo",
                    device: ThisDevice.profile, newTokens: job.newTokens, runs: measured)
                file = try write(profile)
                self.profile = profile
            } catch is CancellationError {
                complaint = nil
            } catch {
                complaint = error.localizedDescription
            }
            UIApplication.shared.isIdleTimerDisabled = false
            measuring = nil
        }
    }

    /// Beside the artifacts, where Finder and the Files app find it.
    private func write(_ profile: Profile) throws -> URL {
        let file = Shelf.folder.appending(path: "\(artifact.name).profile.json")
        try Data(profile.text.utf8).write(to: file, options: .atomic)
        return file
    }
}

/// One run, off the main thread; stops when the task it is called from is cancelled.
private func measure(_ artifact: Artifact, _ units: Units, _ job: Job) async throws -> MeasuredRun {
    let work = Task.detached(priority: .userInitiated) {
        let program = try await makeProgram(for: artifact, units: units)
        return try job.run(
            program, vocabulary: artifact.manifest.spec.vocabSize, memory: ThisDevice.memory, stop: { Task.isCancelled })
    }
    return try await withTaskCancellationHandler {
        try await work.value
    } onCancel: {
        work.cancel()
    }
}
