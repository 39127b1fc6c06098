/// JSON whose members keep their order and whose numbers look as Python writes them, so that all sides give the same bytes.
indirect enum JSONText {
    case object([(String, JSONText)])
    case array([JSONText])
    case text(String)
    case whole(Int)
    case number(Double)
    case bool(Bool)
    case null

    /// On one line, ", " and ": " between, as json.dumps has it.
    var line: String {
        switch self {
        case .object(let members):
            return "{" + members.map { "\(quoted($0.0)): \($0.1.line)" }.joined(separator: ", ") + "}"
        case .array(let values):
            return "[" + values.map(\.line).joined(separator: ", ") + "]"
        case .text(let text): return quoted(text)
        case .whole(let value): return String(value)
        case .number(let value): return pythonText(value)
        case .bool(let value): return value ? "true" : "false"
        case .null: return "null"
        }
    }

    /// A member a line, indented by two, as json.dumps(indent=2) has it.
    func lines(_ margin: String = "") -> String {
        let inner = margin + "  "
        switch self {
        case .object(let members) where !members.isEmpty:
            let rows = members.map { "\(inner)\(quoted($0.0)): \($0.1.lines(inner))" }
            return "{\n" + rows.joined(separator: ",\n") + "\n\(margin)}"
        case .array(let values) where !values.isEmpty:
            return "[\n" + values.map { inner + $0.lines(inner) }.joined(separator: ",\n") + "\n\(margin)]"
        default: return line
        }
    }

    static func numbers(_ values: [Double]) -> JSONText { .array(values.map { .number($0) }) }
    static func wholes(_ values: [Int]) -> JSONText { .array(values.map { .whole($0) }) }
}

/// The fewest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on: Python's repr.
///
/// Swift finds the same digits and turns to exponents at other sizes.
func pythonText(_ value: Double) -> String {
    precondition(value.isFinite, "JSON has no such number")
    let text = "\(abs(value))"
    let parts = text.split(separator: "e")
    let mantissa = parts[0].split(separator: ".", omittingEmptySubsequences: false)
    let fraction = mantissa.count > 1 ? String(mantissa[1]) : ""
    var digits = Array(String(mantissa[0]) + fraction)
    var point = mantissa[0].count + (parts.count > 1 ? Int(parts[1])! : 0)  // the value is 0.DIGITS * 10^point
    while digits.count > 1, digits.first == "0" {
        digits.removeFirst()
        point -= 1
    }
    while digits.count > 1, digits.last == "0" { digits.removeLast() }
    let sign = value.sign == .minus ? "-" : ""
    if digits == ["0"] { return sign + "0.0" }
    let exponent = point - 1
    if exponent < -4 || exponent >= 16 {
        let rest = digits.count > 1 ? "." + String(digits.dropFirst()) : ""
        let size = String(abs(exponent))
        return "\(sign)\(digits[0])\(rest)e\(exponent < 0 ? "-" : "+")\(size.count < 2 ? "0" + size : size)"
    }
    if point <= 0 { return sign + "0." + String(repeating: "0", count: -point) + String(digits) }
    if point >= digits.count { return sign + String(digits) + String(repeating: "0", count: point - digits.count) + ".0" }
    return sign + String(digits[..<point]) + "." + String(digits[point...])
}

/// A JSON string of ASCII alone, as Python writes it.
private func quoted(_ text: String) -> String {
    var quoted = "\""
    for unit in text.utf16 {
        switch unit {
        case 0x22: quoted += "\\\""
        case 0x5C: quoted += "\\\\"
        case 0x08: quoted += "\\b"
        case 0x0C: quoted += "\\f"
        case 0x0A: quoted += "\\n"
        case 0x0D: quoted += "\\r"
        case 0x09: quoted += "\\t"
        case 0x20...0x7E: quoted.unicodeScalars.append(Unicode.Scalar(UInt8(unit)))
        default:
            let hex = String(unit, radix: 16)
            quoted += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
        }
    }
    return quoted + "\""
}
