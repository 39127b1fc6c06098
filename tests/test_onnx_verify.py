"""Verification finds a wrong ONNX graph: each mutation of a good artifact, or of what writes it, turns the answer to no."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported import CONTEXT, checkpoint, onnx_artifact, with_recipe
from tiny_families import written

from mobile_export.audit import audit_artifact
from mobile_export.cli import run
from mobile_export.emit.onnx import calibrate, matrices
from mobile_export.emit.onnx.graph import GraphWriter
from mobile_export.emit.onnx.weights_file import WeightsFile

Edit = Callable[[onnx.GraphProto], object]
FORMS = {
    "fp32": ("--recipe", "fp32"),
    "w4-fast": ("--recipe", "w4-fast"),
    "w8-fast": ("--recipe", "w8-fast"),
    "int8-cache": ("--recipe", "w8-fast", "--kv", "int8"),
    "float16": ("--recipe", "w8-fast", "--activations", "float16"),
}


def edited(source: Path, folder: Path, edit: Edit) -> Path:
    """A copy of an artifact with another graph; its manifest knows of it, so nothing but the numbers can tell."""
    shutil.copytree(source, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return agreed(folder)


def agreed(folder: Path) -> Path:
    """Make the manifest say what the files are."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    for held in values["files"]:
        content = (folder / held["name"]).read_bytes()
        held |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(values))
    return folder


@pytest.fixture
def verdict(capsys):
    """What `verify` says: its exit code, and the names of the checks that failed."""

    def asked(folder: Path, against: Path) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = run(["verify", str(folder), "--against", str(against), "--json"])
        out, err = capsys.readouterr()
        if not out:
            return code, [err]
        checks = json.loads(out)["checks"]
        return code, [check["name"] for check in checks if not check["passed"]]

    return asked


def nodes(graph: onnx.GraphProto, *operators: str) -> list[onnx.NodeProto]:
    found = [node for node in graph.node if node.op_type in operators]
    assert found, operators
    return found


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    (found,) = [held for held in node.attribute if held.name == name]
    return found


# --- the good ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", FORMS.values(), ids=FORMS)
def test_an_unchanged_copy_passes(tmp_path, verdict, arguments):
    """So that what follows is found for the mutation's sake."""
    folder = edited(onnx_artifact(checkpoint(), "--no-verify", *arguments), tmp_path / "out", lambda graph: None)
    assert verdict(folder, checkpoint()) == (0, [])


# --- edits of the graph ------------------------------------------------------------------------------------------------


def without_accuracy_level(graph: onnx.GraphProto) -> None:
    node = nodes(graph, "MatMulNBits")[3]
    node.attribute.remove(attribute(node, "accuracy_level"))


def lower_accuracy_level(graph: onnx.GraphProto) -> None:
    for node in nodes(graph, "MatMulNBits"):
        attribute(node, "accuracy_level").i = 1


@pytest.mark.parametrize("edit", [without_accuracy_level, lower_accuracy_level])
@pytest.mark.parametrize("form", ["w4-fast", "w8-fast", "float16"])
def test_products_without_int8_activations_are_found_out(tmp_path, verdict, form, edit):
    """Slow, and on 8-bit weights very: nothing in the numbers of one product need show it."""
    folder = edited(onnx_artifact(checkpoint(), "--no-verify", *FORMS[form]), tmp_path / "out", edit)
    code, failed = verdict(folder, checkpoint())
    assert code == 1
    assert "products without int8 activations" in failed


def another_epsilon(graph: onnx.GraphProto) -> None:
    attribute(nodes(graph, "SkipSimplifiedLayerNormalization")[1], "epsilon").f *= 100


def another_score_scale(graph: onnx.GraphProto) -> None:
    attribute(nodes(graph, "GroupQueryAttention")[1], "scale").f *= 1.05


def no_rotation(graph: onnx.GraphProto) -> None:
    attribute(nodes(graph, "GroupQueryAttention")[0], "do_rotary").i = 0


def another_pairing(graph: onnx.GraphProto) -> None:
    attribute(nodes(graph, "GroupQueryAttention")[0], "rotary_interleaved").i = 1


def gate_and_up_changed_over(graph: onnx.GraphProto) -> None:
    gate, up = (
        node for node in nodes(graph, "MatMulNBits", "MatMul") if node.name in ("execution.1.ffn.gate", "execution.1.ffn.up")
    )
    for at in range(1, len(gate.input)):
        gate.input[at], up.input[at] = up.input[at], gate.input[at]


def normed_stream_added_instead_of_the_stream(graph: onnx.GraphProto) -> None:
    norms = nodes(graph, "SkipSimplifiedLayerNormalization")
    norms[1].input[0] = norms[0].output[0]


def one_blocks_weights_for_the_others(graph: onnx.GraphProto) -> None:
    first, second = (n for n in nodes(graph, "MatMulNBits", "MatMul") if n.name.endswith(".ffn.down"))
    second.input[1:] = first.input[1:]


SLIGHT = [another_epsilon, another_score_scale]
EDITS = [
    no_rotation,
    another_pairing,
    gate_and_up_changed_over,
    normed_stream_added_instead_of_the_stream,
    one_blocks_weights_for_the_others,
]


@pytest.mark.parametrize("edit", SLIGHT)
@pytest.mark.parametrize("form", ["fp32", "w4-fast", "w8-fast", "int8-cache"])  # float16 rounds more than these change
def test_a_graph_slightly_wrong_is_found_out(tmp_path, verdict, form, edit):
    folder = edited(onnx_artifact(checkpoint(), "--no-verify", *FORMS[form]), tmp_path / "out", edit)
    code, failed = verdict(folder, checkpoint())
    assert code == 1
    if form in ("w4-fast", "w8-fast"):
        assert set(failed) >= {"float activations, token by token", "float activations, prompt"}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("form", FORMS)
def test_a_graph_of_another_network_is_found_out(tmp_path, verdict, form, edit):
    folder = edited(onnx_artifact(checkpoint(), "--no-verify", *FORMS[form]), tmp_path / "out", edit)
    code, failed = verdict(folder, checkpoint())
    assert code == 1
    assert len(failed) >= 2


SHARED = ("--schedule", "immediate")


@pytest.mark.parametrize("form", FORMS)
def test_two_executions_that_read_one_slot_are_found_out(tmp_path, verdict, form):
    def edit(graph: onnx.GraphProto) -> None:
        attention = nodes(graph, "GroupQueryAttention")
        attention[3].input[3:5] = attention[2].input[3:5]

    folder = edited(onnx_artifact(checkpoint(), "--no-verify", *SHARED, *FORMS[form]), tmp_path / "out", edit)
    code, failed = verdict(folder, checkpoint())
    assert code == 1
    assert any("token by token" in name for name in failed)


@pytest.mark.parametrize("form", FORMS)
def test_a_dropped_schedule_is_found_out(tmp_path, verdict, form):
    """The base's graph under the manifest of the shared one."""
    base, shared = (onnx_artifact(checkpoint(), "--no-verify", *FORMS[form], *more) for more in ((), SHARED))
    folder = Path(shutil.copytree(shared, tmp_path / "out"))
    shutil.copy(base / "model.onnx", folder / "model.onnx")
    assert verdict(agreed(folder), checkpoint()) == (1, ["KV slots too many or too few"])


@pytest.mark.parametrize("form", FORMS)
def test_another_order_of_as_many_executions_is_found_out(tmp_path, verdict, form):
    asked, made = (
        onnx_artifact(checkpoint(), "--no-verify", *FORMS[form], "--schedule", order) for order in ("immediate", "reverse")
    )
    folder = Path(shutil.copytree(asked, tmp_path / "out"))
    shutil.copy(made / "model.onnx", folder / "model.onnx")
    code, failed = verdict(agreed(folder), checkpoint())
    assert code == 1
    assert any("token by token" in name for name in failed)


# --- positions ---------------------------------------------------------------------------------------------------------


def in_data(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an initializer's values, in the data file or in the graph."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (tensor,) = [held for held in model.graph.initializer if held.name == name]
    values = onnx.numpy_helper.to_array(tensor, str(folder))
    changed = np.array(change(values.copy()), order="C")
    assert (changed.shape, changed.dtype) == (values.shape, values.dtype)
    assert (changed != values).any()
    if not tensor.external_data:
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed, name))
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    with (folder / "model.onnx.data").open("r+b") as file:
        file.seek(offset)
        file.write(changed.tobytes())


def one_row_late(table: np.ndarray) -> np.ndarray:
    """As if the first two tokens stood at one place, and every other one place too early."""
    return np.concatenate((table[:1], table[:-1]))


POSITIONS = [
    ("llama", "positions.rope.0.cos", one_row_late),
    ("llama", "positions.rope.0.sin", one_row_late),
    ("pythia", "positions.rope.0.sin", one_row_late),
    ("opt-125m", "positions.rows_of_the_table", lambda rows: rows - 1),
    ("gpt2-lamini", "positions.weight", one_row_late),
    ("bloom", "positions.alibi.table", lambda table: table * np.float32(0.95)),
    ("llama4-chunks", "positions.temperature.(4.0, 0.5).table", one_row_late),
]


@pytest.mark.parametrize(("name", "table", "change"), POSITIONS, ids=[f"{name}-{table}" for name, table, _ in POSITIONS])
def test_a_position_off_by_one_is_found_out(tmp_path, verdict, name, table, change):
    source = checkpoint() if name == "llama" else written(name)
    folder = Path(shutil.copytree(onnx_artifact(source, "--no-verify", "--recipe", "fp32"), tmp_path / "out"))
    in_data(folder, table, change)
    code, failed = verdict(agreed(folder), source)
    assert code == 1
    assert len(failed) >= 2


def test_all_positions_moved_alike_are_the_same_network(tmp_path, verdict):
    """Why the tables above are bent and not moved: rotations are relative. A table that starts at 1 is no fault."""
    folder = Path(shutil.copytree(onnx_artifact(checkpoint(), "--no-verify", "--recipe", "fp32"), tmp_path / "out"))
    frequencies = 10_000.0 ** -(np.arange(8) / 8)
    angles = np.outer(np.arange(1, CONTEXT + 1), frequencies)
    in_data(folder, "positions.rope.0.cos", lambda _: np.cos(angles).astype(np.float32))
    in_data(folder, "positions.rope.0.sin", lambda _: np.sin(angles).astype(np.float32))
    assert verdict(agreed(folder), checkpoint()) == (0, [])


def test_a_window_one_token_too_wide_is_found_out(tmp_path, verdict):
    def edit(graph: onnx.GraphProto) -> None:
        windowed = [n for n in nodes(graph, "GroupQueryAttention") if any(a.name == "local_window_size" for a in n.attribute)]
        attribute(windowed[0], "local_window_size").i += 1

    source = written("qwen2-window")
    folder = edited(onnx_artifact(source, "--no-verify", "--recipe", "fp32"), tmp_path / "out", edit)
    code, failed = verdict(folder, source)
    assert code == 1
    assert "token by token" in failed


def state_of_another_slot(graph: onnx.GraphProto) -> None:
    names = [value.name for value in graph.input if value.name.startswith(("past_state.", "past_conv."))]
    here, there = names[0], next(name for name in names if name.split(".")[1] != names[0].split(".")[1])
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == here:
                node.input[at] = there


@pytest.mark.parametrize("name", ["lfm2", "rwkv4"])
def test_what_is_kept_beside_keys_and_values_is_verified_too(tmp_path, verdict, name):
    source = written(name)
    good = onnx_artifact(source, "--recipe", "fp32")
    assert verdict(good, source) == (0, [])
    folder = edited(good, tmp_path / "out", state_of_another_slot)
    code, failed = verdict(folder, source)
    assert code == 1
    assert "token by token" in failed


# --- codes and scales --------------------------------------------------------------------------------------------------


def one_group_coarser(scales: np.ndarray) -> np.ndarray:
    scales[5, 0] *= 2
    return scales


CODES = [
    ("blocks.1.ffn.up.weight.scales", lambda scales: scales * np.float32(1.01)),
    ("blocks.0.attention.qkv.weight.scales", one_group_coarser),
    ("embedding.weight.scales", one_group_coarser),
    ("blocks.0.ffn.gate.weight.codes", lambda codes: codes << 4 | codes >> 4),
    ("blocks.1.ffn.down.weight.codes", lambda codes: codes[::-1]),
]


@pytest.mark.parametrize(("name", "change"), CODES)
def test_a_wrong_scale_or_code_is_found_out(tmp_path, verdict, name, change):
    folder = Path(shutil.copytree(onnx_artifact(checkpoint(), "--no-verify"), tmp_path / "out"))
    in_data(folder, name, change)
    code, failed = verdict(agreed(folder), checkpoint())
    assert code == 1
    assert set(failed) >= {"float activations, prompt"}


def test_another_checkpoint_is_found_out(verdict):
    code, failed = verdict(onnx_artifact(checkpoint(), "--no-verify"), checkpoint(seed=1))
    assert code == 1
    assert len(failed) >= 4


# --- a wrong emitter ---------------------------------------------------------------------------------------------------


def nibbles_changed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    right = matrices.four_bit_pairs
    monkeypatch.setattr(matrices, "four_bit_pairs", lambda codes: right(codes.view(-1, 2).flip(1).reshape(codes.shape)))


def positions_late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = GraphWriter.floats

    def floats(self: GraphWriter, name: str, values: np.ndarray, part: str):
        return right(self, name, one_row_late(values) if name.startswith("positions.rope.") else values, part)

    monkeypatch.setattr(GraphWriter, "floats", floats)


def int8_activations_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "INT8_ACTIVATIONS", 0)


@pytest.mark.parametrize("broken", [nibbles_changed_over, positions_late, int8_activations_forgotten])
def test_an_export_that_came_out_wrong_is_not_written(tmp_path, monkeypatch, capsys, broken):
    with monkeypatch.context() as patched:
        broken(patched)
        capsys.readouterr()
        sizes = ("--max-context", str(CONTEXT))
        code = run(["onnx", str(checkpoint()), "--out", str(tmp_path / "out"), *with_recipe(sizes)])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path}/out: the artifact disagrees with the same codes and scales in plain PyTorch: ")
    assert err.endswith("; nothing was written; please report it\n")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_payload_written_twice_is_found_by_the_audit(tmp_path, monkeypatch):
    """Shared blocks named apart and a table stored for each reader: every number is right, and it is there twice."""
    right = WeightsFile.add

    def add(self: WeightsFile, *given: object):
        self._ranges.clear()
        return right(self, *given)

    good = onnx_artifact(checkpoint(), "--no-verify", *SHARED)
    assert audit_artifact(good / "model.onnx").clean
    monkeypatch.setattr(WeightsFile, "add", add)
    out = tmp_path / "out"
    assert run(["onnx", str(checkpoint()), "--out", str(out), "--no-verify", *with_recipe(SHARED)]) == 0
    audit = audit_artifact(out / "model.onnx")
    assert not audit.clean
    assert [duplicate.names for duplicate in audit.duplicates] == [(("embedding.weight.rows",), ("embedding.weight.codes",))]


def test_a_shared_initializer_duplicated_is_found_by_the_audit(tmp_path):
    def edit(graph: onnx.GraphProto) -> None:
        """What a tool that inlines or renames leaves: the second execution's weight under a name and in a place of its own."""
        name = "blocks.1.ffn.up.weight.codes"
        (tensor,) = [held for held in graph.initializer if held.name == name]
        held = {entry.key: entry.value for entry in tensor.external_data}
        data = tmp_path / "out" / "model.onnx.data"
        content = data.read_bytes()
        offset = len(content) + -len(content) % 64
        copy = content[int(held["offset"]) :][: int(held["length"])]
        data.write_bytes(content.ljust(offset, b"\0") + copy)
        graph.initializer.append(tensor)
        graph.initializer[-1].name = f"{name}.again"
        next(entry for entry in graph.initializer[-1].external_data if entry.key == "offset").value = str(offset)
        (node,) = [node for node in graph.node if node.name == "execution.3.ffn.up"]
        node.input[1] = f"{name}.again"

    folder = edited(onnx_artifact(checkpoint(), "--no-verify", *SHARED), tmp_path / "out", edit)
    audit = audit_artifact(folder / "model.onnx")
    assert [duplicate.wasted_bytes for duplicate in audit.duplicates] == [128 * 64 // 2]
    assert audit.duplicates[0].names == (("blocks.1.ffn.up.weight.codes",), ("blocks.1.ffn.up.weight.codes.again",))
    assert run(["verify", str(folder), "--against", str(checkpoint())]) == 0, "the numbers are right"


def test_scales_of_an_int8_cache_that_cut_values_off_are_found_out(tmp_path, monkeypatch, capsys):
    """The reference has the scales from the file, so its logits agree with whatever they do."""
    monkeypatch.setattr(calibrate, "MARGIN", 0.1)
    out = tmp_path / "out"
    assert (
        run(["onnx", str(checkpoint()), "--recipe", "w8-fast", "--kv", "int8", "--max-context", "64", "--out", str(out)]) == 1
    )
    assert "keys and values beyond the scales of the cache, share: " in capsys.readouterr().err
    assert not out.exists()
