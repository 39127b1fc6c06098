package org.mobileexport.demo.core

/**
 * A chat template as the plain texts it puts around what is said; mobile_export checks at export that they say what the
 * checkpoint's own template says.
 *
 * [opening]: all before the first user text; [system]: instead of it, around a system text, null where there can be none.
 * [assistant]: between a user text and its answer, and between that and the next user text. [answer]: what asks for an answer.
 */
data class ChatTemplate(
    val opening: String,
    val system: Pair<String, String>?,
    val assistant: Pair<String, String>,
    val answer: String,
) {
    /** The prompt of a conversation: user, assistant, user, ...: it ends with a user text. */
    fun prompt(system: String?, turns: List<String>): String {
        require(turns.size % 2 == 1) { "a conversation ends with a user text" }
        val head = if (system ==
            null
        ) {
            opening
        } else {
            requireNotNull(this.system) { "no system text" }.let { it.first + system + it.second }
        }
        val said =
            turns.withIndex().joinToString("") { (i, text) ->
                if (i % 2 == 0) text else assistant.first + text + assistant.second
            }
        return head + said + answer
    }
}

/** Reads `chat` of a manifest. */
fun chatTemplate(fields: Fields): ChatTemplate = ChatTemplate(
    opening = fields.text("opening"),
    system = if (fields.isNull("system")) null else pair(fields, "system"),
    assistant = pair(fields, "assistant"),
    answer = fields.text("answer"),
)

private fun pair(fields: Fields, name: String): Pair<String, String> {
    val (before, after) =
        fields.texts(name).takeIf { it.size == 2 } ?: throw Refusal(Kind.REFUSED, "$MANIFEST: chat: $name is no pair of texts")
    return before to after
}

/** What to feed a runtime for the next answer. [fresh]: it is to forget the text before. */
data class Asking(val prompt: String, val fresh: Boolean)

/**
 * A conversation, and how much of it the runtime's cache holds already.
 *
 * An answer that ended by itself is in the cache but for its last token, the end of the turn, which the template writes: there
 * only the new turn is fed. An answer that was stopped lacks a token in the cache, so then everything is fed again.
 */
class Conversation(private val template: ChatTemplate?) {
    private val turns = ArrayList<String>()
    private var held = false

    /** Says [text] to the model, trimmed as templates do. Without a template every text is one to go on from, by itself. */
    fun ask(text: String): Asking {
        if (template == null) return Asking(text, fresh = true)
        turns.add(text.trim())
        val goesOn = held && template.answer == template.assistant.first
        held = false
        return if (goesOn) {
            Asking(template.assistant.second + text.trim() + template.answer, fresh = false)
        } else {
            Asking(template.prompt(null, turns), fresh = true)
        }
    }

    /** What the model said. [ended]: by itself. */
    fun answered(text: String, ended: Boolean) {
        if (template == null) return
        turns.add(text.trim())
        held = ended
    }

    /** Takes back what was asked, where nothing came of it. */
    fun failed() {
        turns.removeLastOrNull()
        held = false
    }
}
