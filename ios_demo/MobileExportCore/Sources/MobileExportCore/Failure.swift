import Foundation

/// What a user can act on, in one line: where, what happened, what to do next.
public struct Failure: Error, Equatable, CustomStringConvertible, LocalizedError {
    public let place: String
    public let what: String
    public let next: String

    public init(_ place: String, _ what: String, _ next: String) {
        self.place = place
        self.what = what
        self.next = next
    }

    public var description: String { "\(place): \(what); \(next)" }
    public var errorDescription: String? { description }
}
