"""`coreml` on what it cannot express, damaged packages, full disks and ended runs: one line, the exit code, nothing left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from coremltools.models.utils import load_spec
from exported import CONTEXT, checkpoint, coreml_artifact, coreml_runtime, manifest, with_recipe
from test_artifact_folder import mounted
from test_onnx_damage import contents
from test_onnx_verify import agreed
from tiny_checkpoints import llama_tensors, write_llama, write_weights
from tiny_families import written

from mobile_export.cli import run
from mobile_export.emit.coreml import artifact, package
from mobile_export.errors import InputError

PACKAGE = "model.mlpackage"
INSIDE = f"{PACKAGE}/Data/com.apple.CoreML"
MANIFEST, MODEL, WEIGHTS = FILES = [f"{PACKAGE}/Manifest.json", f"{INSIDE}/model.mlmodel", f"{INSIDE}/weights/weight.bin"]


@pytest.fixture
def copy(tmp_path) -> Path:
    """An artifact to damage."""
    return Path(shutil.copytree(coreml_artifact(checkpoint(), "--no-verify"), tmp_path / "copy"))


def export(out: Path, *arguments: str) -> int:
    sizes = ("--max-context", str(CONTEXT))
    return run(["coreml", str(checkpoint()), "--no-verify", *sizes, "--out", str(out), *with_recipe(arguments)])


# --- what cannot be exported -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--layout", "ane"), 2, "--layout ane: no such layout; write stock or functions"),
        (
            ("--max-prompt", "8"),
            2,
            "--max-prompt: a stock package takes prompts of any length; add --layout functions, or leave it out",
        ),
        (
            ("--palettes", "--recipe", "w8-fast"),
            2,
            "--palettes: recipe w8-fast has no 4-bit weights; choose one that has, such as w4",
        ),
        (("--max-context", "2"), 2, "--max-context: swift-transformers wants a range of lengths; use at least 3"),
        (("--max-context", "257"), 3, "--max-context: 257 positions, the model was trained for 256; use at most 256"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, tuple) else "",
)
def test_options_that_cannot_be_met_are_refused_before_any_work(tmp_path, fails, arguments, code, line):
    assert fails("coreml", checkpoint(), *arguments, "--out", tmp_path / "out") == (code, line)
    assert list(tmp_path.iterdir()) == []


def test_rwkv_is_refused_in_one_line(tmp_path, capsys):
    source = written("rwkv4")
    capsys.readouterr()
    assert run(["coreml", str(source), "--recipe", "w8-fast", "--out", str(tmp_path / "out")]) == 3
    *warnings, line = capsys.readouterr().err.splitlines()
    assert all(warning.startswith("warning: ") for warning in warnings), "of its missing tokenizer"
    assert line.startswith("error: ")
    assert line.endswith(" keeps a running state, which the Core ML emitter does not write yet; use `pte` or `onnx`")
    assert list(tmp_path.iterdir()) == []


def test_an_int8_cache_is_refused(tmp_path, fails):
    recipe = tmp_path / "mine.toml"
    parts = [f"{part} = {{ bits = 8 }}" for part in ("linear", "embedding", "head")]
    about = ['name = "mine"', 'description = "an int8 cache"', *parts, 'activations = "int8"']
    recipe.write_text("\n".join([*about, "[kv]", 'dtype = "int8"', ""]))
    code, line = fails("coreml", checkpoint(), "--recipe", recipe, "--out", tmp_path / "out")
    what = "asks for an int8 cache, and Core ML's states are float16"
    assert (code, line) == (2, f"recipe mine: {what}; choose a recipe without one")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("held", ["file", "folder"])
def test_an_out_that_holds_something_else_is_refused(tmp_path, fails, held):
    out = tmp_path / "out"
    if held == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    code, line = fails("coreml", checkpoint(), "--out", out)
    assert code == 2
    assert line.startswith(f"--out {out}: is a ")
    assert contents(tmp_path) == before


# --- weights beyond float16 --------------------------------------------------------------------------------------------


def with_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> Path:
    source = write_llama(folder / "source")
    tensors = llama_tensors()
    change(tensors[name])
    write_weights(source, tensors)
    return source


def one_of(value: float) -> Callable[[torch.Tensor], object]:
    def change(tensor: torch.Tensor) -> None:
        tensor.view(-1)[7] = value

    return change


DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_weight_that_is_not_finite_is_refused_naming_it(tmp_path, fails, value):
    source = with_tensor(tmp_path, DOWN, one_of(value))
    code, line = fails("coreml", source, "--recipe", "w4-fast", "--out", tmp_path / "out")
    assert code == 3
    assert DOWN in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("tensor", "recipe", "value"),
    [(DOWN, "fp32", -7e4), (DOWN, "w8-fast", 1e7), (DOWN, "w4-fast", 1e6), (NORM, "w4-fast", 7e4), (NORM, "fp32", -1e30)],
    ids=["matrix", "8-bit-scale", "4-bit-scale", "norm", "norm-far-off"],
)
def test_what_float16_cannot_hold_is_refused_naming_it(tmp_path, fails, tensor, recipe, value):
    source = with_tensor(tmp_path, tensor, one_of(value))
    code, line = fails("coreml", source, "--recipe", recipe, "--out", tmp_path / "out")
    assert code == 3, line
    assert line.startswith(f"model.safetensors: {tensor}: holds ")
    assert line.endswith(", and a Core ML package keeps weights in float16, up to 65504; use `pte` or `onnx`")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("factor", [3e-5, 1e-5], ids=["subnormal", "zero"])
def test_scales_that_float16_rounds_are_told_and_what_is_written_verifies(tmp_path, capsys, factor):
    """A row so small that its scale lies among float16's subnormals, where bfloat16 has bits it has not; or below them."""
    source = with_tensor(tmp_path, DOWN, lambda tensor: tensor[3].mul_(factor))
    capsys.readouterr()
    out = tmp_path / "out"
    assert run(["coreml", str(source), "--recipe", "w8-fast", "--max-context", str(CONTEXT), "--out", str(out)]) == 0
    said = manifest(out)
    (warning,) = [line for line in said["warnings"] if DOWN in line]
    assert warning == (
        f"model.safetensors: {DOWN}: 1 of 64 scales are not what float16 holds exactly, and are rounded; "
        "the package's rows there are not the .pte's"
    )
    assert said["verification"]["passed"]
    assert capsys.readouterr().err == f"warning: {warning}\n"


def test_activations_that_overflow_float16_are_found_and_nothing_is_written(tmp_path, capsys):
    """Every weight fits float16, and what is computed from them does not."""
    source = with_tensor(tmp_path, "model.norm.weight", lambda tensor: tensor.fill_(6e4))
    out = tmp_path / "out"
    assert run(["coreml", str(source), "--recipe", "fp32", "--max-context", str(CONTEXT), "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "float16 throughout, token by token: " in err
    assert "prompt in one call" not in err, "in float32 nothing is wrong with it"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- damaged packages --------------------------------------------------------------------------------------------------


def damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    if kind in ("missing", "renamed"):
        path.rename(path.with_name("other")) if kind == "renamed" else path.unlink()
    else:
        path.write_bytes({"truncated": whole[:-100], "empty": b"", "one bit": bytes(flipped), "longer": whole + b"\0"}[kind])


@pytest.mark.parametrize("kind", ["truncated", "empty", "one bit", "longer", "missing", "renamed"])
@pytest.mark.parametrize("name", FILES, ids=["manifest", "model", "weights"])
def test_a_file_that_is_not_what_the_manifest_says_is_refused(copy, fails, name, kind):
    damage(copy / name, kind)
    code, line = fails("verify", copy, "--against", checkpoint())
    assert code == 3
    assert line.startswith(f"{copy / name}: ")
    there = "the manifest names it and it is not there" if kind in ("missing", "renamed") else "SHA-256 "
    assert there in line


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing", "renamed"])
@pytest.mark.parametrize("name", FILES, ids=["manifest", "model", "weights"])
def test_a_damaged_package_is_refused_where_nobody_compared_digests(copy, fails, name, kind):
    """A truncated weight file must not be read past its end."""
    damage(copy / name, kind)
    with pytest.raises(InputError) as refused:
        coreml_runtime(copy / PACKAGE).step([5], 0)
    line = str(refused.value)
    assert refused.value.exit_code == 3
    assert "\n" not in line
    assert line.startswith((PACKAGE, str(copy))), line
    code, said = fails("generate", copy, "a b c")
    assert code == 3
    assert said.startswith((PACKAGE, str(copy)))


OFFSETS: dict[str, Callable[[int, int], int]] = {
    "beyond-the-file": lambda offset, size: size + 64,
    "in-the-header": lambda offset, size: 0,
    "between-entries": lambda offset, size: offset + 8,
    "another-entry": lambda offset, size: 64,
    "huge": lambda offset, size: 2**63,
}


@pytest.mark.parametrize("where", OFFSETS.values(), ids=OFFSETS)
def test_a_wrong_offset_is_refused_naming_the_constant(copy, fails, where):
    spec = load_spec(str(copy / PACKAGE))
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    name = "blocks_0_attention_norm_weight_to_fp16"
    (operation,) = [op for op in block.operations if op.outputs and op.outputs[0].name == name]
    held = operation.attributes["val"].blobFileValue
    held.offset = where(held.offset, (copy / WEIGHTS).stat().st_size)
    (copy / MODEL).write_bytes(spec.SerializeToString())
    code, line = fails("verify", agreed(copy), "--against", checkpoint())
    assert code == 3
    assert "blocks_0_attention_norm_weight" in line or "weight.bin" in line
    assert line.startswith(PACKAGE)


def test_an_entry_that_says_more_than_the_file_has_is_refused(copy, fails):
    held = bytearray((copy / WEIGHTS).read_bytes())
    struct.pack_into("<Q", held, 64 + 8, 2**40)
    (copy / WEIGHTS).write_bytes(held)
    code, line = fails("verify", agreed(copy), "--against", checkpoint())
    assert code == 3
    assert "is cut off" in line


def test_a_package_of_the_other_layout_is_refused(tmp_path, fails):
    folder = Path(shutil.copytree(coreml_artifact(checkpoint(), "--no-verify"), tmp_path / "copy"))
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["coreml"] |= {"layout": "functions", "max_prompt": 8}
    path.write_text(json.dumps(values))
    code, line = fails("verify", folder, "--against", checkpoint())
    assert code == 3
    assert "has the functions main, not decode, prefill, as a package of layout functions has; export it again" in line


# --- nothing is left behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["new", "over-an-old-one"])
def test_a_disk_that_fills_up_half_way_leaves_what_was_there(tmp_path, monkeypatch, capsys, old):
    out = tmp_path / "out"
    if old:
        assert export(out) == 0
    before = contents(tmp_path)

    def full(folder: Path, *_: object) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifact, "write_package", full)
    capsys.readouterr()
    code = export(out, "--recipe", "w8-fast")
    printed, err = capsys.readouterr()
    assert (code, printed, err.count("\n")) == (4, "", 1)
    assert err.startswith(f"error: {out}: no space left on the disk (")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if old else [])


@pytest.mark.parametrize("size", ["128k", "180k"])
def test_a_real_full_disk_is_told_in_one_line(tmp_path, capsys, size):
    """Room for what is predicted, not for the graph beside it; or for one package, not for two."""
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        capsys.readouterr()
        assert export(disk / "out") == 4
        err = capsys.readouterr().err
        assert err.startswith(f"error: {disk}/out: no space left on the disk (")
        assert err.count("\n") == 1
        assert list(disk.iterdir()) == []


def test_a_disk_too_small_is_told_before_anything_is_converted(tmp_path, monkeypatch, capsys):
    with mounted(tmp_path / "disk", "size=32k") as disk:
        monkeypatch.setattr(package, "convert", lambda *_: pytest.fail("it went to work"))
        capsys.readouterr()
        assert export(disk / "out", "--recipe", "fp32") == 4
        assert "no space left on the disk (" in capsys.readouterr().err
        assert list(disk.iterdir()) == []


# Exports, says "half" when the package is converted and not yet written, and waits to be ended.
RUN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from mobile_export.emit.coreml import package
right = package.convert
def convert(*given):
    model = right(*given)
    print("half", flush=True)
    time.sleep(60)
    return model
package.convert = convert
from mobile_export.cli import run
sys.exit(run(["coreml", sys.argv[1], "--no-verify", "--recipe", "w4-fast", "--out", sys.argv[2]]))
"""


def test_a_run_that_is_ended_half_way_leaves_nothing(tmp_path):
    """SIGTERM; neither in its place nor in the system's room for temporary files, where coremltools works."""
    room = tmp_path / "room"
    room.mkdir()
    command = [sys.executable, "-c", RUN, str(checkpoint()), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(room)})
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert out == b""
    assert err.endswith(b"error: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["room"]
    assert list(room.iterdir()) == []
