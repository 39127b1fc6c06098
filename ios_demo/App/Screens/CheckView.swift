import Foundation
import MobileExportCore
import SwiftUI

/// What an artifact needs beside what this device has, before anything is loaded.
struct CheckView: View {
    let artifact: Artifact
    @State private var units = Units.gpu

    var body: some View {
        List {
            switch Result(catching: { try MemoryEstimate(ModelFacts(artifact.manifest)) }) {
            case .failure(let error):
                Text(error.localizedDescription).foregroundStyle(.red)
            case .success(let memory):
                verdict(Verdict(memory, ThisDevice.target))
                Section("Memory it is expected to take, MiB") {
                    ForEach(memory.terms, id: \.name) { TermRow(term: $0) }
                }
            }
        }
        .navigationTitle(artifact.name)
    }

    @ViewBuilder
    private func verdict(_ verdict: Verdict) -> some View {
        Section("This device: \(verdict.outcome.rawValue)") {
            ForEach(verdict.answers, id: \.limit) { answer in
                Text(answer.reason).foregroundStyle(answer.outcome == .fits ? Color.primary : Color.red)
            }
            if verdict.outcome != .fits {
                Text("The system may end the app while it loads. A shorter --max-context or fewer bits take less.")
            }
        }
        Section(verdict.outcome == .fits ? "Load" : "Load all the same") {
            if artifact.manifest.coreml != nil {
                Picker("Core ML on", selection: $units) {
                    ForEach(Units.allCases) { Text($0.rawValue).tag($0) }
                }
            }
            NavigationLink("Chat") { ChatView(artifact: artifact, units: units) }
            NavigationLink("Benchmark") { BenchmarkView(artifact: artifact, units: units) }
        }
    }
}

/// One term: likely, and the ends.
private struct TermRow: View {
    let term: Term

    var body: some View {
        VStack(alignment: .leading) {
            HStack {
                Text(term.name)
                Spacer()
                Text(words(term.bytes)).monospacedDigit()
            }
            Text("\(term.dirty.likely >= term.clean.likely ? "dirty" : "clean"); \(term.why)")
                .font(.caption).foregroundStyle(.secondary)
        }
    }

    private func words(_ bytes: Interval) -> String {
        func mib(_ value: Double) -> String { String(format: "%.1f", value / ThisDevice.mib) }
        let ends = bytes.low == bytes.high ? "" : " (\(mib(bytes.low)) to \(mib(bytes.high)))"
        return mib(bytes.likely) + ends
    }
}
