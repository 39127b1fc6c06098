/// profile.json of runs on this device: what `mobile-export check --profile` reads.
public struct Profile: Sendable {
    static let schemaVersion = 2

    public let manifest: Manifest
    public let artifact: String
    public let tool: String
    public let device: Device
    public let newTokens: Int
    public let runs: [MeasuredRun]

    /// Where it was measured. model: "iPhone17,1". memoryMib: DRAM the system sees; availableMib: left to the app before.
    public struct Device: Sendable {
        public let system: String
        public let model: String
        public let cores: Int
        public let memoryMib: Double

        public init(system: String, model: String, cores: Int, memoryMib: Double) {
            self.system = system
            self.model = model
            self.cores = cores
            self.memoryMib = memoryMib
        }
    }

    public init(manifest: Manifest, artifact: String, tool: String, device: Device, newTokens: Int, runs: [MeasuredRun]) {
        precondition(!runs.isEmpty, "something was measured")
        self.manifest = manifest
        self.artifact = artifact
        self.tool = tool
        self.device = device
        self.newTokens = newTokens
        self.runs = runs
    }

    public var summary: AtThreads { AtThreads(runs) }

    /// The file's text. What only `profile --adb` knows of a phone is null.
    public var text: String {
        let summary = summary
        let files = manifest.files.map { file in
            JSONText.object([("name", .text(file.name)), ("bytes", .whole(file.bytes)), ("sha256", .text(file.sha256))])
        }
        let machine = JSONText.object([
            ("system", .text(device.system)), ("cpu", .text(device.model)), ("cores", .whole(device.cores)),
            ("memory_mib", .number(device.memoryMib)),
        ])
        return JSONText.object([
            ("schema_version", .whole(Profile.schemaVersion)),
            ("tool", .text(tool)),
            ("artifact", .text(artifact)),
            ("format", .text(manifest.format)),
            ("recipe", .text(manifest.recipe.name)),
            ("files", .array(files)),
            ("machine", machine),
            ("runtime", .text(runs[0].runtime)),
            ("weights", .text("packed at load")),
            ("prompt_tokens", .whole(runs[0].promptTokens)),
            ("new_tokens", .whole(newTokens)),
            ("runs", .whole(runs.count)),
            ("by_threads", .array([summary.json])),
            ("best_threads", .whole(summary.threads)),
            ("cold", .null),
            ("operators", .null),
            ("curve", .null),
            ("logits", runs[0].logits.map { $0.json } ?? .null),
            ("phone", .null),
            ("conditions", .null),
            ("agreement", .null),
        ]).lines() + "\n"
    }
}
