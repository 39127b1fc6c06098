"""Verification finds a wrong Core ML package: each mutation of a good one, or of what writes it, turns the answer to no."""

from __future__ import annotations

import dataclasses
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.models.utils import load_spec
from exported import CONTEXT, checkpoint, coreml_artifact, with_recipe
from test_coreml_one_copy import WEIGHTS, package_of
from test_onnx_verify import agreed, one_row_late, verdict  # noqa: F401 - a fixture
from tiny_families import written

from mobile_export.cli import run
from mobile_export.emit.coreml import attention, decoder, matrices
from mobile_export.emit.coreml.attention import UNSEEN, Step
from mobile_export.emit.coreml.decoder import ScaledRmsNorm

MODEL = "Data/com.apple.CoreML/model.mlmodel"
FORMS = {
    "fp32": ("--recipe", "fp32"),
    "w4-fast": ("--recipe", "w4-fast"),
    "palettes": ("--recipe", "w4-fast", "--palettes"),
    "functions": ("--recipe", "w8-fast", "--layout", "functions", "--max-prompt", "8"),
}
SHARED = ("--schedule", "immediate")
STEPS, PROMPT, SWIFT = "token by token", "prompt in one call", "as swift-transformers calls it"
IDENTITY = "export-id that differs"
CODES = "matrices stored with other codes or scales"


class Block:
    """A function's operations, to edit. Constants are replaced where they are used, since others may use them too."""

    def __init__(self, proto: Any) -> None:
        """Constants go first, so that any operation may be given any of them."""
        order = ("const", "constexpr_lut_to_dense", "constexpr_blockwise_shift_scale")
        sorted_ = sorted(proto.operations, key=lambda op: order.index(op.type) if op.type in order else len(order))
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in sorted_]
        del proto.operations[:]
        proto.operations.extend(copies)
        self.operations = proto.operations

    def of(self, *kinds: str) -> list[Any]:
        found = [operation for operation in self.operations if operation.type in kinds]
        assert found, kinds
        return found

    def producer(self, name: str) -> tuple[int, Any]:
        return next((at, op) for at, op in enumerate(self.operations) if name in {output.name for output in op.outputs})

    def constant(self, argument: Any) -> Any:
        """A copy of the constant an argument is, or None."""
        if argument.WhichOneof("binding") == "value":
            return argument.value
        operation = next((op for op in self.operations if argument.name in {output.name for output in op.outputs}), None)
        return operation.attributes["val"] if operation is not None and operation.type == "const" else None

    def number(self, argument: Any) -> float | None:
        """The number an argument is, if it is a constant one."""
        value = self.constant(argument)
        if value is None or value.WhichOneof("value") != "immediateValue":
            return None
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind == "ints" and len(tensor.ints.values) == 1:
            return tensor.ints.values[0]
        if kind == "bytes" and len(tensor.bytes.values) == 2:
            return float(np.frombuffer(tensor.bytes.values, np.float16)[0])
        return None

    def put(self, argument: Any, number: float) -> None:
        """Make a constant argument another number."""
        value = type(self.operations[0].attributes["name"])()
        value.CopyFrom(self.constant(argument))
        tensor = value.immediateValue.tensor
        if tensor.WhichOneof("value") == "ints":
            tensor.ints.values[:] = [int(number)]
        else:
            tensor.bytes.values = np.float16(number).tobytes()
        argument.Clear()
        argument.value.CopyFrom(value)

    def change(self, kind: str, parameter: str, old: float, new: float) -> None:
        """Replace a number wherever operations of a kind take it."""
        arguments = [op.inputs[parameter].arguments[0] for op in self.of(kind) if parameter in op.inputs]
        found = [argument for argument in arguments if self.number(argument) == pytest.approx(old, rel=1e-3, abs=1e-9)]
        assert found, (kind, old)
        for argument in found:
            self.put(argument, new)


Edit = Callable[[Block], object]


def edited(source: Path, folder: Path, edit: Edit, *functions: str) -> Path:
    """A copy of an artifact with other functions; its manifest knows of it, so nothing but the numbers can tell."""
    shutil.copytree(source, folder)
    spec = load_spec(str(package_of(folder)))
    blocks = []
    for name in functions or spec.mlProgram.functions:
        function = spec.mlProgram.functions[name]
        blocks.append(Block(function.block_specializations[function.opset]))
    before = spec.SerializeToString(deterministic=True)
    for block in blocks:
        edit(block)
    if edit is not unchanged:
        assert spec.SerializeToString(deterministic=True) != before
    (package_of(folder) / MODEL).write_bytes(spec.SerializeToString())
    return agreed(folder)


def unchanged(block: Block) -> None:
    """An edit that is none."""


def in_weights(
    source: Path, folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray], parameter: str = "val"
) -> Path:
    """A copy of an artifact with another constant: a float16 one as such, codes byte by byte."""
    shutil.copytree(source, folder)
    spec = load_spec(str(package_of(folder)))
    for function in spec.mlProgram.functions.values():
        operations = function.block_specializations[function.opset].operations
        (found,) = [op for op in operations if op.outputs and op.outputs[0].name == name]
        value = found.attributes["val"] if parameter == "val" else found.inputs[parameter].arguments[0].value
    path = package_of(folder) / WEIGHTS
    held = bytearray(path.read_bytes())
    _, kind, size, begin = struct.unpack_from("<IIQQ", held, value.blobFileValue.offset)
    shape = [dimension.constant.size for dimension in value.type.tensorType.dimensions]
    values = np.frombuffer(held, np.float16 if kind == 1 else np.uint8, size // (2 if kind == 1 else 1), begin).copy()
    values = values.reshape(shape) if kind == 1 else values
    changed = np.array(change(values.copy()), values.dtype, order="C")
    assert changed.shape == values.shape
    assert (changed != values).any()
    held[begin : begin + size] = changed.tobytes()
    path.write_bytes(held)
    return agreed(folder)


# --- the good ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", FORMS.values(), ids=FORMS)
def test_an_unchanged_copy_passes(tmp_path, verdict, arguments):  # noqa: F811
    """So that what follows is found for the mutation's sake."""
    folder = edited(coreml_artifact(checkpoint(), "--no-verify", *arguments), tmp_path / "out", unchanged)
    assert verdict(folder, checkpoint()) == (0, [])


# --- edits of the graph ------------------------------------------------------------------------------------------------


def another_score_scale(block: Block) -> None:
    """The operator has none of its own, so a factor on its queries."""
    operation = block.of("scaled_dot_product_attention")[1]
    query = operation.inputs["query"].arguments[0]
    at, producer = block.producer(query.name)
    factor = block.of("mul")[0].__class__()
    factor.type = "mul"
    factor.inputs["x"].arguments.add().name = query.name
    factor.inputs["y"].arguments.add().CopyFrom(block.of("maximum")[0].inputs["y"].arguments[0])
    block.put(factor.inputs["y"].arguments[0], 1.05)
    factor.outputs.add().CopyFrom(producer.outputs[0])
    factor.outputs[0].name = query.name = "hotter"
    factor.inputs["x"].arguments[0].name = producer.outputs[0].name
    block.operations.insert(at + 1, factor)


def another_epsilon(block: Block) -> None:
    roots = [op for op in block.of("real_div") if block.number(op.inputs["x"].arguments[0]) is not None]
    argument = roots[1].inputs["x"].arguments[0]
    number = block.number(argument)
    assert number
    block.put(argument, 10 * number)


def causality_dropped(block: Block) -> None:
    block.change("mul", "y", UNSEEN, 0.0)


def gate_and_up_changed_over(block: Block) -> None:
    gate, up = (
        op.inputs["weight"].arguments[0]
        for name in ("gate", "up")
        for op in block.of("linear")
        if op.inputs["weight"].arguments[0].name.startswith(f"blocks_1_ffn_{name}_weight")
    )
    gate.name, up.name = up.name, gate.name


def one_blocks_weights_for_the_others(block: Block) -> None:
    first, second = (op for op in block.of("linear") if "ffn_down_weight" in op.inputs["weight"].arguments[0].name)
    second.inputs["weight"].arguments[0].name = first.inputs["weight"].arguments[0].name


def normed_stream_added_instead_of_the_stream(block: Block) -> None:
    """The second norm's input is a sum of the stream and what attention gives."""
    norms = [op.inputs["x"].arguments[0].name for op in block.of("linear")]
    added = {op.outputs[0].name: op for op in block.of("add")}
    sums = [op for op in added.values() if {a.name for i in op.inputs.values() for a in i.arguments} & linear_outputs(block)]
    sums[0].inputs["x"].arguments[0].name = norms[0]


def linear_outputs(block: Block) -> set[str]:
    return {op.outputs[0].name for op in block.of("linear")}


EDITS = [
    another_score_scale,
    another_epsilon,
    causality_dropped,
    gate_and_up_changed_over,
    one_blocks_weights_for_the_others,
    normed_stream_added_instead_of_the_stream,
]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("form", FORMS)
def test_a_graph_of_another_network_is_found_out(tmp_path, verdict, form, edit):  # noqa: F811
    folder = edited(coreml_artifact(checkpoint(), "--no-verify", *FORMS[form]), tmp_path / "out", edit)
    code, failed = verdict(folder, checkpoint())
    assert code == 1
    assert PROMPT in failed
    if edit is not causality_dropped or form == "functions":  # a stock cache is empty behind the newest token
        assert STEPS in failed


@pytest.mark.parametrize(("function", "found"), [("decode", STEPS), ("prefill", PROMPT)])
def test_each_function_is_verified(tmp_path, verdict, function, found):  # noqa: F811
    source = coreml_artifact(checkpoint(), "--no-verify", *FORMS["functions"])
    code, failed = verdict(edited(source, tmp_path / "out", another_score_scale, function), checkpoint())
    assert code == 1
    assert found in failed


def an_empty_slot_that_is_seen(block: Block) -> None:
    block.change("greater_equal", "y", 0, -1)


def an_empty_slot_that_counts_as_a_position(block: Block) -> None:
    block.change("greater", "y", 0, CONTEXT + 1)


@pytest.mark.parametrize("edit", [an_empty_slot_that_is_seen, an_empty_slot_that_counts_as_a_position])
def test_what_only_swift_transformers_would_see_is_found_out(tmp_path, verdict, edit):  # noqa: F811
    source = written("gpt2-lamini")
    folder = edited(coreml_artifact(source, "--no-verify", "--recipe", "fp32"), tmp_path / "out", edit)
    assert verdict(folder, source) == (1, [SWIFT])


@pytest.mark.parametrize("wider", [6, 8])
def test_a_window_off_by_one_is_found_out(tmp_path, verdict, wider):  # noqa: F811
    source = written("qwen2-window")
    good = coreml_artifact(source, "--no-verify", "--recipe", "fp32")
    code, failed = verdict(edited(good, tmp_path / "out", lambda block: block.change("sub", "y", 7, wider)), source)
    assert code == 1
    assert {STEPS, SWIFT} <= set(failed)


def keys_and_values_of_another_execution(block: Block) -> None:
    attention = block.of("scaled_dot_product_attention")
    for parameter in ("key", "value"):
        attention[3].inputs[parameter].CopyFrom(attention[2].inputs[parameter])


@pytest.mark.parametrize("form", ["w4-fast", "functions"])
def test_two_executions_that_read_one_cache_row_are_found_out(tmp_path, verdict, form):  # noqa: F811
    good = coreml_artifact(checkpoint(), "--no-verify", *FORMS[form], *SHARED)
    code, failed = verdict(edited(good, tmp_path / "out", keys_and_values_of_another_execution), checkpoint())
    assert code == 1
    assert STEPS in failed


@pytest.mark.parametrize("form", ["w4-fast", "functions"])
def test_another_order_of_as_many_executions_is_found_out(tmp_path, verdict, form):  # noqa: F811
    asked, made = (
        coreml_artifact(checkpoint(), "--no-verify", *FORMS[form], "--schedule", order) for order in ("immediate", "reverse")
    )
    folder = Path(shutil.copytree(asked, tmp_path / "out"))
    shutil.rmtree(package_of(folder))
    shutil.copytree(package_of(made), package_of(folder))
    code, failed = verdict(agreed(folder), checkpoint())
    assert code == 1
    assert {IDENTITY, STEPS, PROMPT} <= set(failed)
    assert CODES not in failed, "the weights are the same"


def test_another_packages_metadata_is_found_out(tmp_path, verdict):  # noqa: F811
    folder = Path(shutil.copytree(coreml_artifact(checkpoint(), "--no-verify", "--recipe", "fp32"), tmp_path / "out"))
    spec = load_spec(str(package_of(folder)))
    spec.description.metadata.userDefined["mobile-export.export-id"] = 64 * "0"
    (package_of(folder) / MODEL).write_bytes(spec.SerializeToString())
    assert verdict(agreed(folder), checkpoint()) == (1, [IDENTITY])


# --- edits of the weight file ------------------------------------------------------------------------------------------


def one_code(codes: np.ndarray) -> np.ndarray:
    codes[100] ^= 1
    return codes


def one_scale(scales: np.ndarray) -> np.ndarray:
    scales[5] *= 2
    return scales


QKV = "blocks_0_attention_qkv_weight_cast_fp16"


@pytest.mark.parametrize(
    ("form", "name", "parameter", "change"),
    [
        ("w4-fast", QKV, "data", one_code),
        ("w4-fast", QKV, "scale", one_scale),
        ("w4-fast", "embedding_weight_cast_fp16", "data", one_code),
        ("functions", QKV, "data", one_code),
        ("palettes", QKV, "scale", one_scale),
        ("palettes", "blocks_0_attention_qkv_weight_codes_cast_fp16", "indices", one_code),
        ("palettes", "blocks_0_attention_qkv_weight_codes_cast_fp16", "lut", lambda lut: lut[:, :, ::-1]),
    ],
)
def test_one_code_or_scale_is_found_out(tmp_path, verdict, form, name, parameter, change):  # noqa: F811
    """Read back bit for bit: in the numbers it need not show."""
    source = coreml_artifact(checkpoint(), "--no-verify", *FORMS[form])
    code, failed = verdict(in_weights(source, tmp_path / "out", name, change, parameter), checkpoint())
    assert code == 1
    assert CODES in failed


CONSTANTS = [
    ("llama", "blocks_0_attention_norm_weight_to_fp16", lambda weight: weight + 1),
    ("llama", "rotary_0_cos_to_fp16", one_row_late),
    ("llama", "rotary_0_sin_to_fp16", one_row_late),
    ("llama", "rotary_0_sin_to_fp16", lambda sin: sin * 0),
    ("gpt2-lamini", "entry_positions_weight_to_fp16", one_row_late),
    ("llama4-chunks", "attend_temperature_0_to_fp16", one_row_late),
    ("lfm2", "blocks_0_conv_kernel_to_fp16", lambda kernel: kernel[..., ::-1]),
]


@pytest.mark.parametrize(
    ("name", "constant", "change"), CONSTANTS, ids=[f"{n}-{c}-{i}" for i, (n, c, _) in enumerate(CONSTANTS)]
)
def test_a_wrong_norm_or_table_is_found_out(tmp_path, verdict, name, constant, change):  # noqa: F811
    source = checkpoint() if name == "llama" else written(name)
    good = coreml_artifact(source, "--no-verify", "--recipe", "fp32")
    code, failed = verdict(in_weights(good, tmp_path / "out", constant, change), source)
    assert code == 1
    assert {STEPS, PROMPT, SWIFT} <= set(failed)


@pytest.mark.parametrize("form", ["fp32", "w4-fast"])
def test_another_checkpoint_is_found_out(verdict, form):  # noqa: F811
    code, failed = verdict(coreml_artifact(checkpoint(), "--no-verify", *FORMS[form]), checkpoint(seed=1))
    assert code == 1
    assert {STEPS, PROMPT, SWIFT} <= set(failed)
    assert (CODES in failed) == (form == "w4-fast")


# --- a wrong emitter ---------------------------------------------------------------------------------------------------


def causality_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = attention.seen
    patch.setattr(attention, "seen", lambda rule, rows, keys: right(rule, rows + CONTEXT, keys))


def another_step(patch: pytest.MonkeyPatch, **changes: Callable[[Step], object]) -> None:
    def step(*given: Any) -> Step:
        made = Step(*given)
        return dataclasses.replace(made, **{name: change(made) for name, change in changes.items()})

    patch.setattr(decoder, "Step", step)


def a_row_too_far(patch: pytest.MonkeyPatch) -> None:
    another_step(patch, begin=lambda step: step.begin + 1, end=lambda step: step.end + 1)


def unused_slot_ignored(patch: pytest.MonkeyPatch) -> None:
    another_step(patch, unused=lambda step: None)


def epsilon_all_but_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Without any, the placeholders that are traced give NaN, and coremltools refuses those."""
    right = ScaledRmsNorm.__init__

    def init(self: ScaledRmsNorm, norm: Any) -> None:
        right(self, norm)
        self.root_eps *= 0.01

    patch.setattr(ScaledRmsNorm, "__init__", init)


def codes_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(matrices, "PALETTE", matrices.PALETTE + 1)


BROKEN = [
    (causality_forgotten, (), PROMPT),
    (unused_slot_ignored, (), SWIFT),
    (epsilon_all_but_forgotten, (), STEPS),
    (codes_off_by_one, ("--palettes",), CODES),
    (a_row_too_far, ("--layout", "functions", "--max-prompt", "8"), STEPS),
]


@pytest.mark.parametrize(("broken", "arguments", "found"), BROKEN)
def test_an_export_that_came_out_wrong_is_not_written(tmp_path, monkeypatch, capsys, broken, arguments, found):
    with monkeypatch.context() as patched:
        broken(patched)
        capsys.readouterr()
        sizes = ("--max-context", str(CONTEXT))
        code = run(["coreml", str(checkpoint()), "--out", str(tmp_path / "out"), *sizes, *with_recipe(arguments)])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path}/out: the artifact disagrees with the same numbers, rounded to float16, in plain ")
    assert f"{found}: " in err
    assert err.endswith("; nothing was written; please report it\n")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
