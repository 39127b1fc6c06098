"""android_demo/ without a phone: the core runs on the JVM, the app is compiled against stubs of the classes it calls."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from android_stubs import write_stubs
from android_tools import (
    DEMO,
    HAMCREST,
    JUNIT,
    KOTLIN,
    KTLINT,
    benchmark_command,
    compiled,
    core,
    core_tests,
    java,
    kotlin_files,
    needs,
    needs_kotlin,
    npm_package,
    ran,
)
from exported import artifact, checkpoint

from mobile_export.manifest import read_manifest
from mobile_export.measure.host import logits_here
from mobile_export.measure.measurement import MEASUREMENT

APP = DEMO / "app/src/main"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
NAME = "{http://schemas.android.com/apk/res/android}name"
PACKAGE = "org.mobileexport.demo"
needs_aapt2 = needs("aapt2", "aapt android-framework-res")


def benchmark(files: Path, **extras: object) -> dict[str, Any]:
    """What the benchmark activity would write."""
    given = {"run": "one", **{name.replace("_", "-"): str(value) for name, value in extras.items()}}
    intent = [part for name, value in given.items() for part in ("--es", name, value)]
    ran([*benchmark_command(files), *intent], timeout=300)
    (held,) = (files / "runs").iterdir()
    assert held.name == "one.json"
    return json.loads(held.read_text())


@needs_kotlin
def test_the_benchmark_measures_what_the_runner_does(tmp_path: Path) -> None:
    made = artifact(checkpoint())
    asked = {"prompt_tokens": 12, "new_tokens": 3, "sequences": 2, "logits_of": "3,4,5,6,7,8,9,10", "logits_values": 96}
    measured = MEASUREMENT.validate_python(benchmark(tmp_path, model=made / "model.pte", **asked))
    assert (measured.threads, measured.prompt_tokens) == (1, 12)
    assert len(measured.prefill_s) == 2
    assert [len(steps) for steps in measured.decode_s] == [3, 3]
    assert measured.peak_rss_kib >= measured.at_start.rss_anon_kib > 0
    here = logits_here(made, read_manifest(made), pytest.fail, timeout_s=300)
    assert measured.logits is not None
    assert (measured.logits.tokens, measured.logits.count) == (here.tokens, here.count)
    assert measured.logits.values == pytest.approx(here.values, abs=1e-5)
    assert measured.logits.sum == pytest.approx(sum(measured.logits.values))
    assert measured.logits.argmax == here.argmax


@needs_kotlin
@pytest.mark.parametrize(
    ("extras", "kind", "said"),
    [
        ({"model": "/nowhere.pte"}, "refused", "/nowhere.pte: no such file"),
        ({"model": __file__}, "refused", "loading the program failed"),
        ({}, "usage", "model: name a .pte file"),
        ({"model": "m", "threads": 0}, "usage", "threads: from 1 to 64"),
        ({"model": "m", "new-tokens": "a few"}, "usage", "new-tokens a few: no number from 0 on"),
        ({"model": "m", "weight-cache": ""}, "usage", "weight-cache: the app has no such option"),
    ],
)
def test_what_cannot_be_measured_is_one_line_in_the_same_file(
    tmp_path: Path, extras: dict[str, object], kind: str, said: str
) -> None:
    error = benchmark(tmp_path, **extras)["error"]
    assert error["kind"] == kind
    assert said in error["what"]
    assert "\n" not in error["what"]


@needs_kotlin
def test_a_run_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        benchmark(tmp_path / "files", run="../one", model="m")
    assert caught.value.stderr.startswith("run: 1 to 64 letters")
    assert list(tmp_path.rglob("*.json")) == []


@needs_kotlin
@needs("junit4", "junit4", JUNIT)
def test_the_core_passes_its_own_tests() -> None:
    classes = [f"{PACKAGE}.core.{path.stem}" for path in kotlin_files("core/src/test") if path.stem.endswith("Test")]
    command = [*java(core(), core_tests(), JUNIT, HAMCREST), "org.junit.runner.JUnitCore", *classes]
    done = ran(command, cwd=DEMO / "core", timeout=300)
    assert len(classes) >= 6
    assert re.search(r"^OK \(\d\d tests\)$", done.stdout, re.MULTILINE), done.stdout


@needs_kotlin
def test_the_files_are_written_as_ktlint_wants() -> None:
    ktlint = npm_package(*KTLINT) / "resources/ktlint"
    ran(["java", "-jar", str(ktlint), "--relative", "**/*.kt", "**/*.kts"], cwd=DEMO, timeout=300)


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Kind -> names of the app's resources, which aapt2 compiled and linked with its manifest against Android's own."""
    room = tmp_path_factory.mktemp("resources")
    ran(["aapt2", "compile", "--dir", str(APP / "res"), "-o", str(room / "res.zip")])
    manifest = (APP / "AndroidManifest.xml").read_text().replace("<manifest ", f'<manifest package="{PACKAGE}" ', 1)
    (room / "AndroidManifest.xml").write_text(manifest)  # Gradle takes the package from `namespace`
    link = ["aapt2", "link", "-I", str(FRAMEWORK), "--manifest", str(room / "AndroidManifest.xml"), "-o", str(room / "out.apk")]
    ran([*link, "--min-sdk-version", "29", "--output-text-symbols", str(room / "R.txt"), str(room / "res.zip")])
    found: dict[str, set[str]] = {}
    for line in (room / "R.txt").read_text().splitlines():
        _, kind, name, _ = line.split(" ", 3)
        found.setdefault(kind, set()).add(name)
    return found


def app_jar(folder: Path, symbols: dict[str, set[str]], sources: list[Path]) -> Path:
    """The app's sources, compiled with what Gradle and the phone would have beside them."""
    kinds = [
        f"public static class {kind} {{ public static final int {' = 0, '.join(sorted(names))} = 0; }}"
        for kind, names in symbols.items()
    ]
    generated = {
        "R": f"public class R {{ {' '.join(kinds)} }}",
        "BuildConfig": 'public class BuildConfig { public static final String EXECUTORCH_VERSION = ""; }',
    }
    for name, text in generated.items():
        (folder / f"{name}.java").write_text(f"package {PACKAGE}; {text}")
    beside = [*write_stubs(folder / "stubs"), *(folder / f"{name}.java" for name in generated)]
    annotations = npm_package(*KOTLIN) / "lib/annotations-13.0.jar"
    return compiled([*sources, *beside], [core(), annotations])


@needs_kotlin
@needs_aapt2
def test_the_app_compiles_against_what_it_calls(tmp_path: Path, symbols: dict[str, set[str]]) -> None:
    assert app_jar(tmp_path, symbols, kotlin_files("app/src/main")).exists()


@needs_kotlin
@needs_aapt2
def test_a_misused_signature_does_not_compile(tmp_path: Path, symbols: dict[str, set[str]]) -> None:
    misuses = {
        "AndroidProgram.kt": ("Module.LOAD_MODE_MMAP, job.threads", "job.threads, Module.LOAD_MODE_MLOCK"),
        "Speaker.kt": ("emptyList(), bos, 0", "emptyList(), bos, 0f"),
        "Phone.kt": ("currentThermalStatus", "thermalStatus"),
        "PickedFolder.kt": (' ?: throw Refusal(Kind.REFUSED, "${file.name}: cannot be read")', ""),
        "BenchmarkActivity.kt": ("R.string.again", "R.string.nowhere"),
    }
    sources = []
    for path in kotlin_files("app/src/main"):
        before, after = misuses.get(path.name, ("", ""))
        assert before in path.read_text(), path.name
        sources.append(tmp_path / path.name)
        sources[-1].write_text(path.read_text().replace(before, after, 1) if before else path.read_text())
    with pytest.raises(subprocess.CalledProcessError) as caught:
        app_jar(tmp_path, symbols, sources)
    wrong = set(re.findall(r"(\w+\.kt):\d+:\d+: error:", caught.value.stderr))
    assert wrong == misuses.keys(), caught.value.stderr


def test_every_string_is_used_and_there() -> None:
    texts = ElementTree.parse(APP / "res/values/strings.xml").getroot()
    held = {text.attrib["name"] for text in texts}
    kotlin = "".join(path.read_text() for path in kotlin_files("app/src/main"))
    xml = "".join(path.read_text() for path in APP.rglob("*.xml"))
    used = set(re.findall(r"(?<!android\.)R\.(?:string|array)\.(\w+)", kotlin)) | set(re.findall(r"@string/(\w+)", xml))
    assert used == held


def test_the_manifest_asks_for_nothing_and_opens_two_activities() -> None:
    root = ElementTree.parse(APP / "AndroidManifest.xml").getroot()
    assert [child.tag for child in root] == ["application"]  # no permission, INTERNET least of all
    (application,) = root
    space = NAME.removesuffix("name")
    open_to = {
        activity.attrib[NAME]: (activity.attrib[f"{space}exported"], activity.attrib.get(f"{space}permission"))
        for activity in application
    }
    assert open_to == {".ChatActivity": ("true", None), ".BenchmarkActivity": ("true", "android.permission.DUMP")}
    for name in open_to:
        (source,) = (path for path in kotlin_files("app/src/main") if path.stem == name.removeprefix("."))
        assert f"class {name.removeprefix('.')} : Activity()" in source.read_text()
    (chat,) = (activity for activity in application if activity.attrib[NAME] == ".ChatActivity")
    assert [each.attrib[NAME] for each in chat.iter("category")] == ["android.intent.category.LAUNCHER"]


def test_versions_are_those_we_export_and_check_with() -> None:
    versions = tomllib.loads((DEMO / "gradle/libs.versions.toml").read_text())["versions"]
    pinned = re.search(r"^executorch==(\S+)$", (DEMO.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert versions["executorch"] == pinned[1]
    assert versions["kotlin"] == KOTLIN[1]
    build = (DEMO / "app/build.gradle.kts").read_text()
    assert f'applicationId = "{PACKAGE}"' in build
    wrapper = (DEMO / "gradle/wrapper/gradle-wrapper.properties").read_text()
    assert "gradle-9.1.0-bin.zip" in wrapper  # what AGP 9.0 wants, says its page
