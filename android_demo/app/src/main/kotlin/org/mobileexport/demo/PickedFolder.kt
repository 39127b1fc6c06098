package org.mobileexport.demo

import android.content.ContentResolver
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import org.mobileexport.demo.core.Kind
import org.mobileexport.demo.core.MANIFEST
import org.mobileexport.demo.core.Refusal
import java.io.File

/**
 * Copies the files of a folder that the system's picker gave into a folder of the app, where a runtime can map them.
 *
 * Copied beside and renamed: an interrupted copy is no artifact. Returns the folder.
 */
fun copyPicked(resolver: ContentResolver, tree: Uri, into: File): File {
    val root = DocumentsContract.getTreeDocumentId(tree)
    val files = filesIn(resolver, tree, root)
    if (files.none { it.name == MANIFEST }) {
        throw Refusal(Kind.REFUSED, "no $MANIFEST in that folder; choose one that mobile-export wrote")
    }
    val bytes = files.sumOf { it.bytes }
    if (!into.isDirectory && !into.mkdirs()) throw Refusal(Kind.REFUSED, "$into: cannot be made")
    if (bytes >
        into.usableSpace
    ) {
        throw Refusal(Kind.REFUSED, "no room: the folder has $bytes bytes, ${into.usableSpace} are free")
    }
    val name = root.substringAfterLast('/').substringAfterLast(':').replace(Regex("[^A-Za-z0-9._-]"), "_").trimStart('.')
    val folder = File(into, name.ifEmpty { "artifact" })
    val beside = File(into, ".${folder.name}.part")
    beside.deleteRecursively()
    beside.mkdirs()
    for (file in files) {
        val from = resolver.openInputStream(file.uri) ?: throw Refusal(Kind.REFUSED, "${file.name}: cannot be read")
        from.use { source -> File(beside, file.name).outputStream().use { source.copyTo(it) } }
    }
    folder.deleteRecursively()
    if (!beside.renameTo(folder)) throw Refusal(Kind.REFUSED, "$folder: cannot be written")
    return folder
}

private class PickedFile(val uri: Uri, val name: String, val bytes: Long)

/** The files of a folder, not of folders in it; names come from whoever provides the folder, so they are held to be plain. */
private fun filesIn(resolver: ContentResolver, tree: Uri, folder: String): List<PickedFile> {
    val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)
    val columns =
        arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_SIZE, Document.COLUMN_MIME_TYPE)
    val cursor =
        resolver.query(children, columns, null, null, null) ?: throw Refusal(Kind.REFUSED, "that folder cannot be read")
    return cursor.use {
        generateSequence { if (it.moveToNext()) it else null }
            .filter { row -> row.getString(3) != Document.MIME_TYPE_DIR }
            .map { row ->
                PickedFile(
                    DocumentsContract.buildDocumentUriUsingTree(tree, row.getString(0)),
                    row.getString(1),
                    row.getLong(2),
                )
            }
            .filter { file -> '/' !in file.name && !file.name.startsWith('.') }
            .toList()
    }
}
