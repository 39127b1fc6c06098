package org.mobileexport.demo.core

/** A file of the artifact. [sha256]: as 64 hexadecimal digits. */
data class FileDigest(val name: String, val bytes: Long, val sha256: String)

/** What the app needs of manifest.json (mobile_export/manifest.py). [chat]: null where the model knows no turns. */
data class Manifest(
    val source: String,
    val recipe: String,
    val licence: String?,
    val files: List<FileDigest>,
    val tokenizerFiles: List<String>,
    val maxContext: Int,
    val addsBos: Boolean,
    val chat: ChatTemplate?,
    val facts: ModelFacts,
) {
    /** The file a runtime is given. */
    val file: String get() = files.first().name
}

/** The version of mobile-export's manifests this app reads. */
const val SCHEMA_VERSION = 5L

/** Reads the text of a manifest.json; throws a [Refusal] of what is not there, contradicts itself, or cannot run here. */
fun readManifest(text: String): Manifest {
    val values =
        try {
            parseJson(text)
        } catch (problem: JsonProblem) {
            refuse("not JSON: ${problem.message}")
        }
    val fields = Fields(MANIFEST, values as? Map<*, *> ?: refuse("no object"))
    val version = fields.wholeOrNull("schema_version")
    if (version != SCHEMA_VERSION) refuse("schema_version $version, this app reads $SCHEMA_VERSION")
    val format = fields.text("format")
    if (format != "pte") throw Refusal(Kind.REFUSED, "$MANIFEST: format $format; this app runs .pte files: mobile-export pte")
    if (fields.fields("pte").fieldsOrNull("core_ml") != null) {
        throw Refusal(Kind.REFUSED, "$MANIFEST: made for Core ML, which no Android phone has; export it without --backend")
    }
    val files = fields.objects("files").map { FileDigest(it.text("name"), it.whole("bytes"), it.text("sha256")) }
    (files.map { it.name } + fields.texts("tokenizer_files")).forEach { if (!isPlainName(it)) refuse("$it is no file's name") }
    if (files.isEmpty()) refuse("files is empty")
    return Manifest(
        source = fields.text("source"),
        recipe = fields.fields("recipe").text("name"),
        licence = fields.textOrNull("licence"),
        files = files,
        tokenizerFiles = fields.texts("tokenizer_files"),
        maxContext = fields.whole("max_context").toInt(),
        addsBos = fields.flag("adds_bos"),
        chat = fields.fieldsOrNull("chat")?.let(::chatTemplate),
        facts = factsOf(fields),
    )
}

/** The name of the file that says what an artifact is. */
const val MANIFEST = "manifest.json"

/** A name that stays within its folder. */
private fun isPlainName(name: String) = name.isNotEmpty() && '/' !in name && '\u0000' !in name && name != "." && name != ".."

private fun refuse(what: String): Nothing = throw Refusal(Kind.REFUSED, "$MANIFEST: $what; export the artifact again")
