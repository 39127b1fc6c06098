import Foundation
import MobileExportCore
import SwiftUI

/// A chat with a model: its words as they come, and what they cost.
struct ChatView: View {
    static let longestAnswer = 512

    let artifact: Artifact
    let units: Units
    @State private var model: LoadedModel?
    @State private var turns: [String] = []  // of user and model in turn
    @State private var typed = ""
    @State private var cost = ""
    @State private var complaint: String?
    @State private var answering: Task<Void, Never>?

    var body: some View {
        VStack {
            ScrollView {
                LazyVStack(alignment: .leading) {
                    if artifact.manifest.chat == nil {
                        Text("No chat template: the model goes on with what you write.").font(.caption)
                    }
                    ForEach(turns.indices, id: \.self) { number in
                        Text(turns[number])
                            .foregroundStyle(number % 2 == 0 ? Color.secondary : Color.primary)
                            .textSelection(.enabled)
                            .padding(4)
                    }
                }
            }
            if let complaint { Text(complaint).foregroundStyle(.red) }
            if model == nil && complaint == nil { ProgressView("Loading") }
            Text(cost).font(.caption).monospacedDigit()
            HStack {
                TextField("Message", text: $typed).onSubmit { send() }
                if answering == nil {
                    Button("Send") { send() }.disabled(model == nil || typed.isEmpty)
                } else {
                    Button("Stop") { answering?.cancel() }
                }
            }
        }
        .padding()
        .navigationTitle(artifact.name)
        .toolbar {
            Button("New chat") { turns = [] }.disabled(answering != nil)
        }
        .task { await load() }
        .onDisappear { answering?.cancel() }
    }

    private func load() async {
        guard model == nil else { return }
        do {
            model = try await LoadedModel(artifact, units: units)
            cost = memoryNow()
        } catch {
            complaint = error.localizedDescription
        }
    }

    private func send() {
        guard let model, answering == nil, !typed.isEmpty else { return }
        let text = typed
        typed = ""
        complaint = nil
        if artifact.manifest.chat == nil { turns = [] }
        let asked = turns + [text]
        turns = asked + [""]
        answering = Task {
            do {
                for try await said in model.answer(asked, most: ChatView.longestAnswer) {
                    switch said {
                    case .text(let text): turns[turns.count - 1] += text
                    case .done(let times): cost = words(times) + "\n" + memoryNow()
                    }
                }
            } catch {
                complaint = error.localizedDescription
                if turns.last == "" {  // nothing came: the question may be asked again
                    turns.removeLast(2)
                    typed = text
                }
            }
            answering = nil
        }
    }

    private func words(_ times: AnswerTimes) -> String {
        let rate = times.tokensPerS.map { String(format: ", then %.1f tokens/s", $0) } ?? ""
        let first = String(format: "first token %.2f s", times.firstTokenS)
        return "\(times.promptTokens) tokens in, \(times.newTokens) out: \(first)\(rate)"
    }

    private func memoryNow() -> String {
        let now = ThisDevice.memory.resident()
        return "dirty \(now.rssAnonKib / 1024) MiB, total \(now.pssKib / 1024) MiB, thermal \(ThisDevice.thermal)"
    }
}
