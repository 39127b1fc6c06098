package org.mobileexport.demo.core

import java.io.File
import java.security.MessageDigest

/** An artifact folder on the phone whose files are those its manifest names. */
data class Artifact(val folder: File, val manifest: Manifest) {
    val model get() = File(folder, manifest.file)

    /** The first of the tokenizer files ExecuTorch's runner reads; throws a [Refusal] where there is none. */
    val tokenizer: File
        get() =
            TOKENIZERS.map { File(folder, it) }.firstOrNull { it.canRead() }
                ?: throw Refusal(
                    Kind.REFUSED,
                    "$folder: no ${TOKENIZERS.joinToString(" or ")}; export a checkpoint that has one",
                )
}

/** Folders in [place] that hold a manifest, by name; none where [place] cannot be read. */
fun artifactsIn(place: File): List<File> =
    place.listFiles().orEmpty().filter { File(it, MANIFEST).canRead() }.sortedBy { it.name }

/**
 * Opens an artifact folder: its manifest is read, and every file is held against its digest, seconds for a large model.
 */
fun openArtifact(folder: File): Artifact {
    val file = File(folder, MANIFEST)
    if (!folder.isDirectory) throw Refusal(Kind.REFUSED, "$folder: no such folder; push an artifact with mobile-export push")
    if (!file.isFile) throw Refusal(Kind.REFUSED, "$folder: no $MANIFEST in it; choose a folder that mobile-export wrote")
    if (!file.canRead()) throw Refusal(Kind.REFUSED, "$file: this app may not read it; push it with mobile-export push")
    if (file.length() >
        LONGEST_MANIFEST
    ) {
        throw Refusal(Kind.REFUSED, "$file: too long for a manifest; export the artifact again")
    }
    val artifact = Artifact(folder, readManifest(file.readText()))
    for (held in artifact.manifest.files) {
        val path = File(folder, held.name)
        val problem =
            when {
                !path.isFile -> "the manifest names it and it is not there"
                !path.canRead() -> "this app may not read it"
                path.length() != held.bytes -> "${path.length()} bytes, the manifest says ${held.bytes}"
                sha256(path) != held.sha256 -> "its SHA-256 is not the manifest's"
                else -> null
            }
        if (problem != null) throw Refusal(Kind.REFUSED, "$path: $problem; push the artifact again")
    }
    return artifact
}

private val TOKENIZERS = listOf("tokenizer.json", "tokenizer.model")
private const val LONGEST_MANIFEST = 16L shl 20
private const val CHUNK = 1 shl 20

private fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val chunk = ByteArray(CHUNK)
    file.inputStream().use { input ->
        while (true) {
            val read = input.read(chunk)
            if (read < 0) break
            digest.update(chunk, 0, read)
        }
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}
