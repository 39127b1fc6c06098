package org.mobileexport.demo.core

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class ConversationTest {
    private val template = ChatTemplate("<o>", "<s>" to "</s>", "<a>" to "</a>", "<a>")

    @Test
    fun anAnswerThatEndedIsInTheCache() {
        val conversation = Conversation(template)
        assertEquals(Asking("<o>one<a>", fresh = true), conversation.ask(" one\n"))
        conversation.answered("1 ", ended = true)
        assertEquals(Asking("</a>two<a>", fresh = false), conversation.ask("two"))
        conversation.answered("2", ended = false)
        assertEquals(Asking("<o>one<a>1</a>two<a>2</a>three<a>", fresh = true), conversation.ask("three"))
    }

    @Test
    fun whatFailedWasNotSaid() {
        val conversation = Conversation(template)
        conversation.ask("one")
        conversation.answered("1", ended = true)
        conversation.ask("two")
        conversation.failed()
        assertEquals(Asking("<o>one<a>1</a>three<a>", fresh = true), conversation.ask("three"))
    }

    @Test
    fun aTemplateThatAsksOtherwiseThanItRemembersIsFedWhole() {
        val conversation = Conversation(template.copy(answer = "<a><think>"))
        conversation.ask("one")
        conversation.answered("1", ended = true)
        assertEquals(Asking("<o>one<a>1</a>two<a><think>", fresh = true), conversation.ask("two"))
    }

    @Test
    fun withoutATemplateATextIsGoneOnFrom() {
        val conversation = Conversation(null)
        assertEquals(Asking(" Once ", fresh = true), conversation.ask(" Once "))
        conversation.answered("upon", ended = true)
        assertEquals(Asking("Twice", fresh = true), conversation.ask("Twice"))
    }

    @Test
    fun aSystemTextStandsInsteadOfTheOpening() {
        assertEquals("<s>be brief</s>one<a>", template.prompt("be brief", listOf("one")))
        assertFailsWith<IllegalArgumentException> { template.copy(system = null).prompt("be brief", listOf("one")) }
        assertFailsWith<IllegalArgumentException> { template.prompt(null, listOf("one", "two")) }
    }
}
