"""The runner's bundle for arm64 phones: what it computes under qemu, what is in it, and what stops a build."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from arm64 import emulated, needs_arm64, runner_bundle
from exported import artifact, checkpoint
from runner_operators import needs_compiler

from mobile_export.cache import cache_folder
from mobile_export.errors import MissingTool
from mobile_export.measure import arm64_wheel, build, bundle
from mobile_export.measure.bundle import COMPILER, arm64_bundle, build_bundle
from mobile_export.measure.measurement import MEASUREMENT, Measurement
from mobile_export.measure.needed_libraries import needed_libraries
from mobile_export.measure.operators import operator_times
from mobile_export.measure.tools import steps_here

SAME = 1e-6  # of the largest logit: float32 summed in another order; 2.3e-7 at most was seen
ASK = ("--logits-of", "5,9,2,44,71,3,8,90,12,33,7,60", "--logits-values", "100000")  # more tokens than fit in one call
SMALL = ("--prompt-tokens", "10", "--new-tokens", "2")
SHARED = {"kind": "mobilellm", "layer_sharing": True, "form": "bin"}
MODELS = {
    "base": lambda: artifact(checkpoint()),
    "base, 8-bit": lambda: artifact(checkpoint(), "--recipe", "w8-fast", "--no-verify"),
    "base, int8 cache": lambda: artifact(checkpoint(), "--kv", "int8"),
    "blocks shared": lambda: artifact(checkpoint(**SHARED), "--no-verify"),
    "blocks shared, int8 cache": lambda: artifact(checkpoint(**SHARED), "--kv", "int8", "--no-verify"),
}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle's files and no others, as a phone has it."""
    made, folder = runner_bundle(), tmp_path_factory.mktemp("phone")
    for file in made.files:
        shutil.copy(made.folder / file.name, folder)
    return folder


def measured(command: list[str], model: Path, *options: str) -> Measurement:
    """The one line a runner prints, validated as `profile` does it."""
    line = [*command, "--model", str(model), *SMALL, *ASK, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1
    return MEASUREMENT.validate_json(done.stdout)


def assert_same_logits(one: Measurement, other: Measurement) -> None:
    assert one.logits is not None
    assert other.logits is not None
    largest = max(map(abs, other.logits.values))
    differences = [abs(a - b) for a, b in zip(one.logits.values, other.logits.values, strict=True)]
    assert max(differences) < SAME * largest
    assert (one.logits.argmax, one.logits.count) == (other.logits.argmax, other.logits.count)
    assert len(differences) == one.logits.count


# --- what it computes ------------------------------------------------------------------------------------------------


@needs_arm64
@needs_compiler
@pytest.mark.parametrize("kind", MODELS)
def test_the_bundle_computes_what_the_host_runner_does(pushed, kind):
    model = MODELS[kind]() / "model.pte"
    host = measured([str(build.build_runner())], model)
    for threads in ("1", "2"):
        arm = measured(emulated(runner_bundle(), pushed), model, "--threads", threads)
        assert_same_logits(arm, host)
        assert (arm.runtime, arm.threads) == (host.runtime, int(threads))
        assert arm.backends == ["XnnpackBackend"]


@needs_arm64
def test_packed_weights_and_the_trace_work_in_the_bundle(pushed, tmp_path):
    folder, packed, trace = MODELS["blocks shared"](), tmp_path / "packed", tmp_path / "trace.etdp"
    model, command = folder / "model.pte", emulated(runner_bundle(), pushed)
    plain = measured(command, model, "--etdump", str(trace))
    cached = measured(command, model, "--weight-cache")
    made = measured(command, model, "--packed-weights", str(packed))
    written = packed.stat().st_mtime_ns
    mapped = measured(command, model, "--packed-weights", str(packed))
    assert packed.stat().st_size > 10_000
    assert packed.stat().st_mtime_ns == written
    assert plain.logits == cached.logits == made.logits == mapped.logits
    calls = {line.name: line.calls for line in operator_times(trace)}
    assert calls["llama::custom_sdpa"] == 4  # of a token: two blocks, each twice


# --- what is in it ---------------------------------------------------------------------------------------------------


@needs_arm64
def test_the_program_starts_by_its_command_and_not_without_any_one_file(pushed, tmp_path):
    made = runner_bundle()
    line = emulated(made)[:3]
    assert made.command == ("./ld-linux-aarch64.so.1", "--library-path", ".", "./runner")

    def said(folder: Path) -> str:
        command = [*line, *made.command]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False).stderr

    assert os.access(pushed / made.command[0], os.X_OK)
    assert said(pushed) == "--model: name a .pte file\n"
    for file in made.files:
        folder = tmp_path / file.name
        shutil.copytree(pushed, folder)
        (folder / file.name).unlink()
        assert "name a .pte file" not in said(folder), f"{file.name} is not needed"


@needs_arm64
def test_every_file_is_for_arm64_and_loads_with_pages_of_16_kib(pushed):
    """ELF64: e_machine at 18, e_phoff at 32, e_phnum at 56; in a program header p_type at 0, p_align at 48."""
    for path in pushed.iterdir():
        elf = path.read_bytes()
        assert struct.unpack_from("<4s14xH", elf) == (b"\x7fELF", 183), path.name
        (start,), (count,) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<H", elf, 56)
        headers = [struct.unpack_from("<I44xQ", elf, start + 56 * i) for i in range(count)]
        alignments = [align for kind, align in headers if kind == 1]
        assert min(alignments) >= 16384, path.name


@needs_arm64
def test_a_bundle_is_made_once_and_again_where_a_file_was_changed(cache):
    said: list[str] = []
    first = arm64_bundle(said.append, download=True)
    assert first.folder.is_relative_to(cache)
    assert said == []
    library = first.folder / "libexecutorch.so"
    library.write_bytes(library.read_bytes()[:-1])
    assert arm64_bundle(said.append, download=True) == first  # to the byte
    assert said == ["building the runner for arm64, once"]
    assert left_in(cache) == {first.folder.name, "wheels"}


@needs_arm64
def test_the_same_sources_elsewhere_give_the_same_program(cache, tmp_path):
    """The cache may hold what another checkout built."""
    shutil.copytree(build.SOURCES, tmp_path / "elsewhere")
    elsewhere = build_bundle(tmp_path / "elsewhere", "runner", lambda _: None, download=True)
    assert elsewhere.files == runner_bundle().files


@needs_arm64
def test_a_bundle_another_process_made_meanwhile_is_left_alone(cache, monkeypatch):
    made = arm64_bundle(lambda _: None, download=True)
    elsewhere = cache / "elsewhere"
    made.folder.rename(elsewhere)

    def meanwhile(program: Path, tools: build.Toolchain, folder: Path) -> None:
        shutil.copytree(elsewhere, folder)
        elsewhere.rename(made.folder)

    monkeypatch.setattr(bundle, "compile_program", lambda *_: made.folder / "runner")
    monkeypatch.setattr(bundle, "_assemble", meanwhile)
    before = (elsewhere / "runner").stat().st_ino
    assert arm64_bundle(lambda _: None, download=True) == made
    assert (made.folder / "runner").stat().st_ino == before


def test_a_wheel_of_the_pinned_executorch_is_known():
    pinned = re.search(r"^executorch==(.*)$", (Path(__file__).parents[1] / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert arm64_wheel.PINNED[pinned[1]].name.startswith(f"executorch-{pinned[1]}-")


# --- what stops a build ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder with the wheel and the runner's bundle."""
    made = runner_bundle()  # skips the test without a wheel
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in (made.folder, made.folder.parent / "wheels"):
        if folder.exists():
            shutil.copytree(folder, cache_folder() / folder.name)
    return cache_folder()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusal() -> str:
    with pytest.raises(MissingTool) as caught:
        arm64_bundle(lambda _: None, download=True)
    return str(caught.value)


def fake(folder: Path, name: str, script: str) -> None:
    """A program on the path that is found first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("lacking", "line"),
    [
        (COMPILER, f"{COMPILER}: no cross compiler for arm64; Debian: apt install g++-aarch64-linux-gnu "),
        ("cmake", "cmake: is not installed; Debian: apt install g++-aarch64-linux-gnu libc6-dev-arm64-cross cmake; or pass "),
    ],
)
def test_a_missing_tool_is_named_and_in_doctor(tmp_path, monkeypatch, lacking, line):
    for name in {COMPILER, "cmake"} - {lacking}:
        fake(tmp_path / "bin", name, "echo 99.0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert refusal().startswith(line)
    (step,) = (step for step in steps_here() if step.name == "runner for phones")
    assert [need.name for need in step.needs if not need.met] == [lacking]
    assert not step.required


@needs_arm64
@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("x.cpp:1: error: no such thing", f"{COMPILER}: the runner does not build: x.cpp:1: error: no such thing; Debian: "),
        ("ld: cannot find crt1.o: No such file", f"{COMPILER}: the runner does not build: ld: cannot find crt1.o: No such fi"),
        ("fatal error: error writing to x.s: No space left on device", "mobile-export: no space left on the disk to build in"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing_behind(cache, tmp_path, monkeypatch, said, line):
    fake(tmp_path / "bin", COMPILER, f'[ "$1" = --version ] && exit 0\necho "{said}" >&2\nexit 1')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    before = left_in(cache)
    assert line in refusal()
    assert left_in(cache) == before


@needs_arm64
def test_nothing_is_fetched_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(arm64_wheel, "_fetch", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(MissingTool, match=r"executorch-.*aarch64\.whl: is not here yet: 17\.81 MB, .*; add --download, or "):
        arm64_bundle(lambda _: None, download=False)


@needs_arm64
def test_an_interrupted_build_leaves_nothing_behind(cache, monkeypatch):
    (arm64_bundle(lambda _: None, download=True).folder / "libm.so.6").unlink()
    before = left_in(cache)
    (cache / ".building-999999999-killed/build").mkdir(parents=True)

    def interrupt(*_: object) -> None:
        assert left_in(cache) > before
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "compile_program", interrupt)
    with pytest.raises(KeyboardInterrupt):
        arm64_bundle(lambda _: None, download=True)
    assert left_in(cache) == before


@needs_arm64
@needs_compiler
def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    line = f"{tmp_path}/file/mobile-export: cannot be written: Not a directory; name another folder in XDG_CACHE_HOME"
    assert refusal() == line
    with pytest.raises(MissingTool, match=re.escape(line)):
        build.build_runner()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """All that pip sees; no wheel is kept from before."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return folder


@needs_arm64
def test_without_a_network_the_wheel_is_named(index):
    line = refusal()
    assert line.startswith("pip: cannot fetch executorch-1.5.1-cp311-cp311-manylinux_2_28_aarch64.whl: ERROR: Could not find")
    assert line.endswith("; look at pip's network and index, or name a folder with this wheel in PIP_FIND_LINKS")
    assert left_in(cache_folder()) == set()


@needs_arm64
def test_a_wheel_that_is_not_the_pinned_one_is_refused(index):
    name = arm64_wheel.PINNED["1.5.1"].name
    with zipfile.ZipFile(index / name, "w") as wheel:
        about, tag = "executorch-1.5.1.dist-info", "cp311-cp311-manylinux_2_28_aarch64"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: executorch\nVersion: 1.5.1\n")
        wheel.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{about}/RECORD", "")
        wheel.writestr("executorch/lib/libexecutorch.so", "")
    assert re.fullmatch(
        rf"{re.escape(name)}: SHA-256 [0-9a-f]{{12}}\.\.\., mobile-export knows 8ee02348a3ea\.\.\.; "
        "do not use it; fetch it from another index",
        refusal(),
    )
    assert left_in(cache_folder()) == set()


def test_an_executorch_nobody_tried_on_arm64_is_refused(monkeypatch):
    monkeypatch.setattr(arm64_wheel, "PINNED", {"1.4.0": arm64_wheel.PINNED["1.5.1"]})
    assert refusal().startswith("executorch 1.5.1: its arm64 wheel was never tried, only that of 1.4.0; pip install executorch")


def test_a_library_that_is_nowhere_is_named():
    with pytest.raises(MissingTool, match=r"^\S+: python\S* needs this library and it is nowhere; install the C and C\+\+ lib"):
        needed_libraries(Path(sys.executable).resolve(), "readelf", lambda _: None)
