import SwiftUI

/// Pick an artifact, see whether this device has room for it, talk to it, measure it.
@main
struct DemoApp: App {
    var body: some Scene {
        WindowGroup {
            NavigationStack { ArtifactsView() }
        }
    }
}
