package org.mobileexport.demo.core

import java.io.File
import kotlin.io.path.createTempDirectory
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class ArtifactTest {
    private val place = createTempDirectory().toFile()
    private val folder = File(place, "llama")
    private val text = GOLDEN.resolve("manifests/llama-w4-fast.json").readText()

    @AfterTest
    fun remove() {
        place.deleteRecursively()
    }

    private fun write(manifest: String = text, model: ByteArray = ByteArray(0)) {
        folder.mkdirs()
        File(folder, MANIFEST).writeText(manifest)
        File(folder, "model.pte").writeBytes(model)
    }

    private fun refused() = assertFailsWith<Refusal> { openArtifact(folder) }.what

    @Test
    fun anArtifactIsFoundAndOpened() {
        val empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // the SHA-256 of no bytes
        val held = readManifest(text).files.first()
        write(text.replace(held.sha256, empty).replace("\"bytes\": ${held.bytes},", "\"bytes\": 0,"))
        File(place, "other").mkdirs()
        assertEquals(listOf(folder), artifactsIn(place))
        assertEquals(emptyList(), artifactsIn(File(place, "nowhere")))
        val artifact = openArtifact(folder)
        assertEquals(File(folder, "model.pte"), artifact.model)
        assertContains(assertFailsWith<Refusal> { artifact.tokenizer }.what, "no tokenizer.json or tokenizer.model")
        File(folder, "tokenizer.json").writeText("{}")
        assertEquals("tokenizer.json", artifact.tokenizer.name)
    }

    @Test
    fun aChangedFileIsNoticed() {
        write(model = ByteArray(readManifest(text).files.first().bytes.toInt()))
        assertContains(refused(), "model.pte: its SHA-256 is not the manifest's")
    }

    @Test
    fun whatIsMissingOrChangedIsNamed() {
        assertContains(refused(), "no such folder")
        folder.mkdirs()
        assertContains(refused(), "no manifest.json in it")
        write()
        assertContains(refused(), "model.pte: 0 bytes, the manifest says")
        File(folder, "model.pte").delete()
        assertContains(refused(), "model.pte: the manifest names it and it is not there")
        write("{\"schema_version\": 3")
        assertContains(refused(), "manifest.json: not JSON: line 1, column 21")
    }

    @Test
    fun aDamagedManifestIsOneLine() {
        val damages =
            mapOf(
                "\"format\": \"pte\"" to "\"format\": \"onnx\"",
                "\"schema_version\": $SCHEMA_VERSION" to "\"schema_version\": 4",
                "\"name\": \"model.pte\"" to "\"name\": \"../model.pte\"",
                "\"max_context\":" to "\"most_context\":",
                "\"hidden_size\": 64" to "\"hidden_size\": \"64\"",
                "4-bit, group 32" to "5-bit, group 32",
                "\"dtype\": \"float32\"" to "\"dtype\": \"float31\"",
                "\"blocks.0.ffn.up.weight\":" to "\"blocks.0.ffn.sideways.weight\":",
            )
        for ((from, to) in damages) {
            assertContains(text, from)
            val what = assertFailsWith<Refusal>(to) { readManifest(text.replace(from, to)) }.what
            assertTrue(what.startsWith("manifest.json: ") && '\n' !in what, what)
        }
        for (cut in 0..text.length step 97) {
            assertFailsWith<Refusal>("cut at $cut") {
                readManifest(
                    text.take(
                        minOf(
                            cut,
                            text.length - 5,
                        ),
                    ),
                )
            }
        }
    }
}
