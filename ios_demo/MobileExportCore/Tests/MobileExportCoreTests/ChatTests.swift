import XCTest

@testable import MobileExportCore

final class ChatTests: XCTestCase {
    struct Case: Decodable {
        struct Conversation: Decodable {
            let system: String?
            let turns: [String]
            let prompt: String
        }

        let name: String
        let chat: Chat
        let conversations: [Conversation]
    }

    func testPromptsAreThoseOfTheTemplate() throws {
        for one in try Golden.cases("chat.json", of: Case.self) {
            for said in one.conversations {
                XCTAssertEqual(one.chat.prompt(said.turns, system: said.system), said.prompt, one.name)
            }
        }
    }

    func testWhatTheUserTypedIsTrimmed() {
        let chat = Chat(opening: "<s>", system: ["(", ")"], assistant: [">", "<"], answer: ">")
        XCTAssertEqual(chat.prompt([" 2 + 2?\n", "4 ", "+ 1?"], system: "\tadd "), "(add)2 + 2?>4<+ 1?>")
        XCTAssertEqual(chat.prompt([" 2 + 2?"]), "<s>2 + 2?>")
    }
}
