"""`onnx` on bad input, damaged artifacts, old runtimes, full disks and killed runs: one line, the exit code, nothing left."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from exported import CONTEXT, checkpoint, onnx_artifact, with_recipe
from test_artifact_folder import mounted
from tiny_checkpoints import llama_tensors, write_llama, write_weights

from mobile_export.cli import run
from mobile_export.emit.onnx import program
from mobile_export.emit.onnx.weights_file import WeightsFile
from mobile_export.errors import InputError
from mobile_export.verify.onnx_runtime import OnnxRuntime

FILES = ["model.onnx", "model.onnx.data"]


@pytest.fixture
def copy(tmp_path) -> Path:
    """An artifact to damage."""
    return Path(shutil.copytree(onnx_artifact(checkpoint(), "--no-verify"), tmp_path / "copy"))


# --- what cannot be exported -------------------------------------------------------------------------------------------


def with_group(folder: Path, size: int) -> Path:
    four, eight = f"{{ bits = 4, group_size = {size} }}", "{ bits = 8 }"
    lines = ['name = "mine"', 'description = "groups"', f"linear = {four}", f"embedding = {eight}", f"head = {eight}"]
    path = folder / "mine.toml"
    path.write_text("\n".join(lines) + '\nactivations = "int8"\n')
    return path


@pytest.mark.parametrize("size", [96, 512])
def test_groups_the_kernels_do_not_take_are_refused_naming_the_tensor(tmp_path, fails, size):
    source = write_llama(tmp_path / "source", hidden=3 * 512, heads=8, kv_heads=2, ffn=3 * 512, blocks=1)
    code, line = fails("onnx", source, "--recipe", with_group(tmp_path, size), "--out", tmp_path / "out")
    assert code == 3
    assert line == (
        "model.safetensors: model.layers.0.self_attn.q_proj.weight: 1536 inputs in blocks of "
        f"{size}, onnxruntime takes 16, 32, 64, 128 or 256; give it another group_size by an [[override]]"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [64, 128, 256])
def test_groups_the_kernels_take_are_taken(tmp_path, size):
    source = write_llama(tmp_path / "source", hidden=256, heads=8, kv_heads=2, ffn=256, blocks=1)
    out = tmp_path / "out"
    arguments = ["--recipe", str(with_group(tmp_path, size)), "--max-context", str(CONTEXT), "--out", str(out)]
    assert run(["onnx", str(source), *arguments]) == 0
    assert (out / "model.onnx").is_file()


def test_a_channel_of_an_odd_size_is_refused_with_a_way_out(tmp_path, fails):
    source = write_llama(tmp_path / "source", hidden=40, heads=5, kv_heads=1, ffn=64)
    code, line = fails("onnx", source, "--recipe", "w8-fast", "--out", tmp_path / "out")
    assert code == 3
    assert line.startswith("model.safetensors: model.embed_tokens.weight: 40 inputs in blocks of 8, onnxruntime takes 16, 32,")
    assert line.endswith("; use `pte`, or recipe fp32")
    arguments = ["--recipe", "fp32", "--max-context", str(CONTEXT), "--out", str(tmp_path / "out")]
    assert run(["onnx", str(source), *arguments]) == 0, "the way out is one"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path, fails, value):
    source = write_llama(tmp_path / "source")
    tensors = llama_tensors()
    tensors["model.layers.1.mlp.down_proj.weight"][3, 7] = value
    write_weights(source, tensors)
    code, line = fails("onnx", source, "--recipe", "w4-fast", "--out", tmp_path / "out")
    assert code == 3
    assert "model.layers.1.mlp.down_proj.weight" in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_more_context_than_the_model_was_trained_for_is_refused(tmp_path, fails):
    arguments = ("onnx", checkpoint(), "--max-context", "257", "--out", tmp_path / "out")
    assert fails(*arguments) == (3, "--max-context: 257 positions, the model was trained for 256; use at most 256")
    assert list(tmp_path.iterdir()) == []


# --- damaged artifacts -------------------------------------------------------------------------------------------------


def damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes({"truncated": whole[:-100], "empty": b"", "one bit": bytes(flipped), "longer": whole + b"\0"}[kind])


@pytest.mark.parametrize("kind", ["truncated", "empty", "one bit", "longer"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(copy, fails, name, kind):
    damage(copy / name, kind)
    code, line = fails("verify", copy, "--against", checkpoint())
    assert code == 3
    assert line.startswith(f"{copy}/{name}: SHA-256 ")
    assert line.endswith("; export the artifact again, or restore the file it was written with")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(copy, fails, name):
    (copy / name).unlink()
    code, line = fails("verify", copy, "--against", checkpoint())
    assert (code, line) == (3, f"{copy}/{name}: the manifest names it and it is not there; export the artifact again")


@pytest.mark.parametrize("kind", ["truncated", "empty"])
def test_a_damaged_manifest_is_refused_by_every_command(copy, fails, kind):
    damage(copy / "manifest.json", kind)
    for command in (("verify", copy, "--against", checkpoint()), ("generate", copy, "a b")):
        code, line = fails(*command)
        assert code == 3
        assert line.startswith(f"{copy}/manifest.json: not JSON: ")
        assert line.endswith("; export the artifact again")


@pytest.mark.parametrize("kind", ["truncated", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_the_runtime_refuses_a_damaged_file_in_one_line(copy, name, kind):
    """Where nobody compared digests. A truncated data file must not be read past its end."""
    damage(copy / name, kind)
    with pytest.raises(InputError) as refused:
        OnnxRuntime(copy / "model.onnx", "1.0").step([5], 0)
    line = str(refused.value)
    assert refused.value.exit_code == 3
    assert line.startswith(f"{copy}/model.onnx: onnxruntime {onnxruntime.__version__} does not load it: ")
    assert line.endswith("; export it again")
    assert "\n" not in line


@pytest.mark.parametrize("name", FILES)
def test_generate_refuses_a_damaged_file_in_one_line(copy, fails, name):
    damage(copy / name, "truncated")
    code, line = fails("generate", copy, "a b c")
    assert code == 3
    assert line.startswith(f"{copy}: onnxruntime-genai refuses: ")


# --- an onnxruntime too old --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", ["1.23.2", "1.9.0", "0.99.1"])
def test_an_onnxruntime_too_old_is_told_with_the_version_it_needs(monkeypatch, fails, old):
    folder = onnx_artifact(checkpoint(), "--no-verify")
    needs = json.loads((folder / "manifest.json").read_text())["onnx"]["minimum_onnxruntime"]
    monkeypatch.setattr(onnxruntime, "__version__", old)
    line = f'{folder}/model.onnx: needs onnxruntime {needs}, this is {old}; pip install "onnxruntime>={needs}"'
    assert fails("verify", folder, "--against", checkpoint()) == (4, line)
    assert fails("generate", folder, "a b c") == (4, line)


@pytest.mark.parametrize("version", ["1.24.0", "1.100.0", "2.0.0", "1.31.0.dev20260101", "1.30.0+cu12"])
def test_a_new_enough_one_is_taken(monkeypatch, version):
    """Numbers are compared, not letters."""
    monkeypatch.setattr(onnxruntime, "__version__", version)
    OnnxRuntime(onnx_artifact(checkpoint(), "--no-verify") / "model.onnx", "1.24").step([5], 0)


# --- nothing is left behind --------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def export(out: Path, *arguments: str) -> int:
    sizes = ("--max-context", str(CONTEXT))
    return run(["onnx", str(checkpoint()), "--no-verify", *sizes, "--out", str(out), *with_recipe(arguments)])


@pytest.mark.parametrize("arguments", [(), ("--kv", "int8")], ids=["plain", "calibrated"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "over-an-old-one"])
def test_a_disk_that_fills_up_half_way_leaves_what_was_there(tmp_path, monkeypatch, capsys, old, arguments):
    """/dev/full takes nothing, as a full disk does."""
    out = tmp_path / "out"
    if old:
        assert export(out) == 0
    before = contents(tmp_path)
    monkeypatch.setattr(program, "WeightsFile", lambda _: WeightsFile(Path("/dev/full")))
    capsys.readouterr()
    code = export(out, *arguments)
    printed, err = capsys.readouterr()
    assert (code, printed, err.count("\n")) == (4, "", 1)
    assert err.startswith(f"error: {out}: no space left on the disk (")
    assert err.endswith("; free some, or name another place with --out\n")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if old else [])


def test_a_disk_too_small_is_told_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    with mounted(tmp_path / "disk", "size=32k") as disk:
        monkeypatch.setattr(program, "WeightsFile", lambda _: pytest.fail("it went to work"))
        capsys.readouterr()
        assert export(disk / "out", "--recipe", "fp32") == 4
        assert "no space left on the disk (" in capsys.readouterr().err
        assert list(disk.iterdir()) == []


# Exports, says "half" when some weights are written, and waits to be ended.
RUN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from mobile_export.emit.onnx.weights_file import WeightsFile
right, calls = WeightsFile.add, []
def add(self, *given):
    calls.append(given)
    if len(calls) == 5:
        self._file.flush()
        print("half", flush=True)
        time.sleep(60)
    return right(self, *given)
WeightsFile.add = add
from mobile_export.cli import run
sys.exit(run(["onnx", sys.argv[1], "--no-verify", "--recipe", "w4-fast", "--out", sys.argv[2]]))
"""


@contextlib.contextmanager
def half_way(out: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", RUN, str(checkpoint()), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_half_way_leaves_nothing(tmp_path, sent):
    with half_way(tmp_path / "out") as process:
        (partial,) = tmp_path.iterdir()
        assert (partial / "model.onnx.data").stat().st_size > 0
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == b""
    assert err.endswith(b"error: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_after_kill_9_the_old_artifact_is_whole_and_the_next_run_cleans_up(tmp_path):
    out = tmp_path / "out"
    assert export(out) == 0
    before = contents(out)
    with half_way(out) as process:
        process.kill()
        process.wait()
    assert contents(out) == before
    assert len(list(tmp_path.iterdir())) == 2, "nobody was there to remove it"
    assert export(out, "--recipe", "w8-fast") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(out) != before
