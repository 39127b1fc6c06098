"""One number and one copy: a Core ML package holds the codes and scales of the .pte and the ONNX, and each of them once."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.models.utils import load_spec
from exported import checkpoint, coreml_artifact, manifest, onnx_artifact, weights_of
from test_onnx_one_copy import MATRICES, ORDERS, WIDE, Stored, onnx_matrices, pte_matrices
from tiny_families import written

from mobile_export.families.spec import DecoderSpec

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
ALIGNMENT, ENTRY = 64, 64
FORMS = {
    "w4-fast": ("--recipe", "w4-fast"),
    "w8-fast": ("--recipe", "w8-fast"),
    "w4-all-fast": ("--recipe", "w4-all-fast"),
    "palettes": ("--recipe", "w4-fast", "--palettes"),
    "functions": ("--recipe", "w4-fast", "--layout", "functions", "--max-prompt", "8"),
    "palettes-in-functions": ("--recipe", "w4-all-fast", "--palettes", "--layout", "functions", "--max-prompt", "8"),
}
SHARED = ("--schedule", "immediate")

# --- reading a package: protobuf's messages, and the weight file by its format ----------------------------------------

NUMPY = {"FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8, "UINT16": np.uint16, "INT32": np.int32}
HALVES = ("INT4", "UINT4")
BITS = {"FLOAT16": 16, "INT8": 8, "UINT8": 8, "UINT16": 16, "INT32": 32, "INT4": 4, "UINT4": 4}
CODE = {"FLOAT16": 1, "UINT8": 3, "INT8": 4, "INT4": 8, "UINT4": 11, "INT32": 14}  # what an entry calls its dtype


def package_of(folder: Path) -> Path:
    return folder / "model.mlpackage"


@functools.cache
def spec_of(folder: Path) -> Any:
    return load_spec(str(package_of(folder)))


def blocks_of(folder: Path) -> dict[str, Any]:
    """Function -> its block."""
    return {name: f.block_specializations[f.opset] for name, f in spec_of(folder).mlProgram.functions.items()}


def dtype_of(value: Any) -> str:
    return type(value.type.tensorType).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[
        value.type.tensorType.dataType
    ].name  # fmt: skip


def shape_of(value: Any) -> list[int]:
    return [dimension.constant.size for dimension in value.type.tensorType.dimensions]


def values_of(operation: Any) -> Iterator[Any]:
    yield from operation.attributes.values()
    for given in operation.inputs.values():
        yield from (argument.value for argument in given.arguments if argument.WhichOneof("binding") == "value")


def places(folder: Path) -> dict[int, tuple[str, int]]:
    """Offset of every entry the functions name -> its dtype and how many bytes its values take."""
    found: dict[int, tuple[str, int]] = {}
    for block in blocks_of(folder).values():
        for operation in block.operations:
            for value in values_of(operation):
                if value.WhichOneof("value") == "blobFileValue":
                    assert value.blobFileValue.fileName == "@model_path/weights/weight.bin"
                    kind = dtype_of(value)
                    size = -(-int(np.prod(shape_of(value))) * BITS[kind] // 8)
                    assert found.setdefault(value.blobFileValue.offset, (kind, size)) == (kind, size)
    return found


def payload(folder: Path, offset: int, kind: str) -> bytes:
    """The bytes an entry speaks of: sentinel, dtype, size, where they begin."""
    held = (package_of(folder) / WEIGHTS).read_bytes()
    sentinel, code, size, begin = struct.unpack_from("<IIQQ", held, offset)
    assert (sentinel, code) == (0xDEADBEEF, CODE[kind])
    return held[begin : begin + size]


def array(folder: Path, value: Any) -> np.ndarray:
    """A constant's values: half bytes lie the lower one first."""
    kind, shape = dtype_of(value), shape_of(value)
    if value.WhichOneof("value") == "immediateValue":
        raw = value.immediateValue.tensor.bytes.values
    else:
        raw = payload(folder, value.blobFileValue.offset, kind)
    if kind not in HALVES:
        return np.frombuffer(raw, NUMPY[kind]).reshape(shape)
    halves = np.array([half for byte in raw for half in (byte & 15, byte >> 4)], np.int8)[: np.prod(shape)].reshape(shape)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8) if kind == "INT4" else halves


@functools.cache
def matrices(folder: Path, function: str) -> dict[str, Stored]:
    """Name of a quantized weight -> its codes, palettes looked up, and scales."""
    operations = {op.outputs[0].name: op for op in blocks_of(folder)[function].operations if op.outputs}

    def given(operation: Any, parameter: str) -> np.ndarray:
        (argument,) = operation.inputs[parameter].arguments
        if argument.WhichOneof("binding") == "value":
            return array(folder, argument.value)
        source = operations[argument.name]
        if source.type == "const":
            return array(folder, source.attributes["val"])
        assert source.type == "constexpr_lut_to_dense"
        return given(source, "lut").reshape(-1).astype(np.int8)[given(source, "indices")]

    found = {}
    for name, operation in operations.items():
        if operation.type == "constexpr_blockwise_shift_scale":
            assert set(operation.inputs) == {"data", "scale"}
            stored = Stored(given(operation, "data").astype(np.int8), given(operation, "scale").astype(np.float32))
            found[re.sub("(_cast_fp16|_to_fp16)$", "", name)] = stored
    return found


# --- one number --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "tied"), [*((form, True) for form in FORMS), ("w4-fast", False)])
def test_codes_and_scales_are_those_of_the_onnx_and_the_pte_to_the_bit(form, tied):
    """The ONNX's are the .pte's in every recipe (test_onnx_one_copy.py); here the .pte is read once more, for w4-fast."""
    recipe = FORMS[form][1]
    folder = coreml_artifact(checkpoint(tied=tied), "--no-verify", *FORMS[form])
    onnx = onnx_matrices(onnx_artifact(checkpoint(tied=tied), "--recipe", recipe, "--no-verify"))
    assert len(blocks_of(folder)) == (2 if "functions" in form else 1)
    for function in blocks_of(folder):
        ours = matrices(folder, function)
        assert len(ours) == 2 * len(MATRICES) + (1 if tied else 2)
        head = ours["embedding_weight" if tied else "head_linear_weight"]
        assert ours["embedding_weight"].bits == onnx["embedding"].bits
        assert head.bits == onnx["head.linear"].bits
        if form == "w4-fast" and tied:
            products, table = pte_matrices(recipe, tied)
            assert ours["embedding_weight"].bits == table.bits
            multiplied = {matrix.bits for name, matrix in ours.items() if name.startswith("blocks_")} | {head.bits}
            assert multiplied == {matrix.bits for matrix in products}
        for block in range(2):
            for name in MATRICES:
                assert ours[f"blocks_{block}_{name.replace('.', '_')}_weight"].bits == onnx[f"execution.{block}.{name}"].bits


# --- one copy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["w8-fast", "functions"])
def test_a_shared_model_has_the_bases_constants_and_a_twin_has_more(form):
    """Each stored block four times over: the weight file stays the base's but for zeros coremltools adds to products."""
    source, twin = checkpoint(**WIDE, blocks=1), checkpoint(**WIDE, blocks=2)
    base = coreml_artifact(source, "--no-verify", *FORMS[form])
    shared = coreml_artifact(source, "--no-verify", *FORMS[form], "--schedule", "0,0")
    unshared = coreml_artifact(twin, "--no-verify", *FORMS[form])
    sizes = {folder: (package_of(folder) / WEIGHTS).stat().st_size for folder in (base, shared, unshared)}
    assert sizes[shared] <= 1.001 * sizes[base] < sizes[unshared] / 1.5
    for function in blocks_of(base):
        assert {name: matrix.bits for name, matrix in matrices(base, function).items()} == {
            name: matrix.bits for name, matrix in matrices(shared, function).items()
        }
        linears = [sum(op.type == "linear" for op in blocks_of(folder)[function].operations) for folder in (base, shared)]
        assert linears == [len(MATRICES) + 1, 2 * len(MATRICES) + 1]


@pytest.mark.parametrize("form", FORMS)
def test_the_weight_file_is_the_sum_of_what_the_functions_name(form):
    """Nothing twice, nothing unused: every entry is named, and the file ends with the last."""
    folder = coreml_artifact(checkpoint(), "--no-verify", *FORMS[form])
    held = (package_of(folder) / WEIGHTS).read_bytes()
    at = places(folder)
    count, version = struct.unpack_from("<II", held)
    assert (count, version) == (len(at), 2)
    end = 64
    for offset in sorted(at):
        kind, size = at[offset]
        assert 0 <= offset - end < ALIGNMENT, "neither overlapping nor apart"
        assert len(payload(folder, offset, kind)) == size
        end = offset + ENTRY + size
    assert 0 <= len(held) - end < ALIGNMENT
    payloads = [payload(folder, offset, at[offset][0]) for offset in at]
    large = [content for content in payloads if len(content) >= 512]
    assert len(set(large)) == len(large) >= 11, "no payload of any size is there twice"


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_table_is_one_constant_read_by_gather_and_product(form):
    folder = coreml_artifact(checkpoint(), "--no-verify", *FORMS[form])
    for block in blocks_of(folder).values():
        readers = [
            (op.type, parameter)
            for op in block.operations
            for parameter, given in op.inputs.items()
            for argument in given.arguments
            if argument.name.startswith("embedding_weight") and not op.type.startswith("constexpr_")
        ]
        assert sorted(readers) == [("gather", "x"), ("linear", "weight")]
    untied = coreml_artifact(checkpoint(tied=False), "--no-verify", *FORMS["w4-fast"])
    tied = coreml_artifact(checkpoint(), "--no-verify", *FORMS["w4-fast"])
    table = 96 * 64 + 96 * 2
    more = (package_of(untied) / WEIGHTS).stat().st_size - (package_of(tied) / WEIGHTS).stat().st_size
    assert 0 <= more - table - 2 * ENTRY < 2 * ALIGNMENT


@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_matrices_is_quantized(form):
    """Rotary tables, norms and biases are float16 constants."""
    folder = coreml_artifact(checkpoint(), "--no-verify", *FORMS[form])
    palettes = "palettes" in form
    for function, block in blocks_of(folder).items():
        kinds = [op.type for op in block.operations]
        assert kinds.count("constexpr_blockwise_shift_scale") == 2 * len(MATRICES) + 1 == len(matrices(folder, function))
        luts = {True: 2 * len(MATRICES) + ("w4-all-fast" in FORMS[form]), False: 0}[palettes]
        assert kinds.count("constexpr_lut_to_dense") == luts
        constants = {op.outputs[0].name: op.attributes["val"] for op in block.operations if op.type == "const"}
        named = [name for name in constants if "norm_weight" in name or name.startswith("rotary_")]
        assert len(named) == 2 * 2 + 1 + 2
        assert {dtype_of(constants[name]) for name in named} == {"FLOAT16"}


# --- what the manifest says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "order"), [(None, [0, 1]), *ORDERS[:2]], ids=["base", *(name for name, _ in ORDERS[:2])])
def test_every_execution_has_a_cache_row_of_its_own(schedule, order):
    arguments = ("--schedule", schedule) if schedule else ()
    folder = coreml_artifact(checkpoint(), "--no-verify", *FORMS["w4-fast"], *arguments)
    states = {feature.name: list(feature.type.stateType.arrayType.shape) for feature in spec_of(folder).description.state}
    assert {shape[0] for shape in states.values()} == {len(order)}
    (block,) = blocks_of(folder).values()
    assert sum(op.type == "write_state" for op in block.operations) == 2 * len(order)
    cache = manifest(folder)["kv_cache"]
    spec = weights_of(checkpoint()).recognised.spec
    assert isinstance(spec, DecoderSpec)
    assert cache["slots"] == len(order)
    assert cache["dtype"] == "float16"
    assert cache["bytes_per_token"] == 2 * 2 * len(order) * spec.num_key_value_heads * spec.head_dim
    assert sum(2 * int(np.prod(shape)) for shape in states.values()) == cache["bytes_per_token"] * 64


@pytest.mark.parametrize(("form", "schedule"), [*((form, ()) for form in FORMS), ("w4-fast", SHARED)])
def test_parts_add_up_and_the_prediction_is_met(form, schedule):
    folder = coreml_artifact(checkpoint(), "--no-verify", *FORMS[form], *schedule)
    said = manifest(folder)
    held = (path for path in package_of(folder).rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in held}
    assert {held["name"]: held["bytes"] for held in said["files"]} == files
    assert sum(part["bytes"] for part in said["parts"]) == sum(files.values())
    parts = {part["name"]: part for part in said["parts"]}
    for name in ("embedding", "head", "blocks", "norms"):
        lut = 32 * (2 * len(MATRICES)) if "palettes" in form and name == "blocks" else 0
        lut += 32 if form == "palettes-in-functions" and name == "embedding" else 0
        assert parts[name]["bytes"] - parts[name]["predicted_bytes"] <= lut, name
        assert parts[name]["bytes"] >= parts[name]["predicted_bytes"], name
    assert parts["head"]["bytes"] == 0, "it is the table"
    assert sum(part["bytes"] for part in said["parts"] if part["name"] != "graph") <= files[f"model.mlpackage/{WEIGHTS}"]


@pytest.mark.parametrize("recipe", ["w8-fast", "fp32"])
@pytest.mark.parametrize("name", ["gpt2-cerebras", "opt-350m"])
def test_a_table_of_positions_is_billed_as_such(name, recipe):
    """And what stands around the table of tokens, too: their places are named otherwise than the weights."""
    parts = {part["name"]: part for part in manifest(coreml_artifact(written(name), "--recipe", recipe))["parts"]}
    rows = 64 if name == "gpt2-cerebras" else 66
    assert parts["positions"]["bytes"] == 64 * rows * 2 if recipe == "fp32" else 64 * rows + 2 * rows
    for part in ("embedding", "head", "blocks", "norms"):
        assert parts[part]["bytes"] == parts[part]["predicted_bytes"], part
