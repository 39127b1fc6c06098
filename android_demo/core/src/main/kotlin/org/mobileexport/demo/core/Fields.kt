package org.mobileexport.demo.core

/**
 * The members of a JSON object by name and kind. What is missing or of another kind is one line that names the place.
 *
 * [place]: "manifest.json" or "manifest.json: pte".
 */
class Fields(private val place: String, private val members: Map<*, *>) {
    fun text(name: String): String = of(name, "text")

    fun textOrNull(name: String): String? = orNull(name, "text")

    fun flag(name: String): Boolean = of(name, "true or false")

    fun whole(name: String): Long = of(name, "whole number")

    fun wholeOrNull(name: String): Long? = orNull(name, "whole number")

    fun fields(name: String): Fields = Fields("$place: $name", of(name, "object"))

    fun fieldsOrNull(name: String): Fields? = orNull<Map<*, *>>(name, "object")?.let { Fields("$place: $name", it) }

    fun texts(name: String): List<String> = list(name).map { it as? String ?: fail(name, "list of texts") }

    fun wholes(name: String): List<Long> = list(name).map { it as? Long ?: fail(name, "list of whole numbers") }

    fun objects(name: String): List<Fields> =
        list(name).mapIndexed { i, held -> Fields("$place: $name.$i", held as? Map<*, *> ?: fail(name, "list of objects")) }

    fun list(name: String): List<*> = of(name, "list")

    /** Every member as text. */
    fun allTexts(): Map<String, String> = members.keys.associate { (it as String).let { name -> name to text(name) } }

    fun isNull(name: String): Boolean = members[name] == null

    private inline fun <reified T> of(name: String, kind: String): T = members[name] as? T ?: fail(name, kind)

    private inline fun <reified T : Any> orNull(name: String, kind: String): T? = if (members[name] ==
        null
    ) {
        null
    } else {
        of(name, kind)
    }

    private fun fail(name: String, kind: String): Nothing =
        throw Refusal(Kind.REFUSED, "$place: $name is no $kind; export the artifact again")
}
