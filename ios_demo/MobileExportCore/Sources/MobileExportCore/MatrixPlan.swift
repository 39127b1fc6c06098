import Foundation

/// One matrix of the graph as it is stored: what it weighs is known from its name, shape and precision alone.
struct MatrixPlan {
    static let embedding = "embedding.weight"
    static let head = "head.linear.weight"
    static let positions = "positions.weight"

    let name: String
    let rows: Int
    let columns: Int
    let bits: Int
    let groupSize: Int?
    let uses: Int

    var parameters: Int { rows * columns }

    /// Bytes of the codes (or floats), two 4-bit codes to a byte.
    var codeBytes: Int { parameters * bits / 8 }

    /// Codes and scales as ExecuTorch's kernels read them: two bytes a group, four a channel.
    var payloadBytes: Int {
        if let groupSize { return codeBytes + parameters / groupSize * 2 }
        return codeBytes + (bits == 32 ? 0 : 4 * rows)
    }

    /// Codes and scales in a Core ML package, where floats and scales are float16.
    var coreMlBytes: Int {
        let scales = groupSize.map { parameters / $0 } ?? rows
        return bits == 32 ? codeBytes / 2 : codeBytes + 2 * scales
    }

    /// - Parameter precision: as the manifest has it: "float32", "8-bit, per channel" or "4-bit, group 32".
    /// - Throws: `Failure`: no graph has such a matrix, or no such precision.
    init(name: String, precision: String, spec: Spec, sharing: Sharing) throws {
        guard let shape = matrixShape(name, spec) else {
            throw Failure(Manifest.name, "matrices: no graph has \(name)", "export the artifact again")
        }
        guard let (bits, groupSize) = MatrixPlan.read(precision), [4, 8, 32].contains(bits), groupSize ?? 1 > 0 else {
            throw Failure(Manifest.name, "matrices: \(name) is \(precision)", "export the artifact again")
        }
        self.name = name
        (rows, columns) = shape
        self.bits = bits
        self.groupSize = groupSize
        if name == MatrixPlan.embedding {
            uses = sharing.tied ? 2 : 1
        } else if let block = blockNumber(name) {
            uses = sharing.schedule.filter { $0 == block }.count
        } else {
            uses = 1
        }
    }

    private static func read(_ precision: String) -> (Int, Int?)? {
        if precision == "float32" { return (32, nil) }
        let words = precision.components(separatedBy: "-bit, ")
        guard words.count == 2, let bits = Int(words[0]) else { return nil }
        if words[1] == "per channel" { return (bits, nil) }
        guard words[1].hasPrefix("group "), let size = Int(words[1].dropFirst("group ".count)) else { return nil }
        return (bits, size)
    }
}

/// Of "blocks.3.ffn.down.weight": 3.
func blockNumber(_ name: String) -> Int? {
    let words = name.components(separatedBy: ".")
    return words.count > 2 && words[0] == "blocks" ? Int(words[1]) : nil
}

/// (out_features, in_features) of a matrix by its graph name; nil for a name no graph of ours has.
func matrixShape(_ name: String, _ spec: Spec) -> (Int, Int)? {
    let hidden = spec.hiddenSize
    let wide = spec.intermediateSize
    let table = spec.embeddingSize ?? hidden
    guard let block = blockNumber(name) else {
        switch name {
        case MatrixPlan.embedding, MatrixPlan.head: return (spec.vocabSize, table)
        case MatrixPlan.positions: return spec.learnedPositions.map { ($0, hidden) }
        case "embedding.project.weight": return (hidden, table)
        case "head.project.weight": return (table, hidden)
        default: return nil
        }
    }
    let place = name.components(separatedBy: ".").dropFirst(2).filter { $0 != "weight" }.joined(separator: ".")
    if let inner = spec.attentionHiddenSize {
        switch place {
        case "attention.key", "attention.value", "attention.receptance": return (inner, hidden)
        case "attention.output": return (hidden, inner)
        case "ffn.key": return (wide, hidden)
        case "ffn.receptance": return (hidden, hidden)
        case "ffn.value": return (hidden, wide)
        default: return nil
        }
    }
    guard let heads = spec.numAttentionHeads, let pairs = spec.numKeyValueHeads, let size = spec.headDim else { return nil }
    let blocks = spec.blocks ?? []
    let convolves = block < blocks.count && blocks[block].mixer == "conv"
    switch place {
    case "attention.qkv": return ((heads + 2 * pairs) * size, hidden)
    case "conv.in": return (3 * hidden, hidden)
    case "ffn.o": return (hidden, convolves ? hidden : heads * size)
    case "ffn.gate", "ffn.up": return (wide, hidden)
    case "ffn.down": return (hidden, wide)
    default: return nil
    }
}
