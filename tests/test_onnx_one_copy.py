"""One number and one copy: an ONNX artifact holds the codes and scales of the .pte, and each of them once."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import deserialize_pte_binary
from exported import ROOM, artifact, checkpoint, manifest, onnx_artifact, program_file, weights_of

from mobile_export.audit import audit_artifact

RECIPES, ALIGNMENT = ["w4-fast", "w8-fast", "w4-all-fast"], 64
MATRICES = ("attention.qkv", "ffn.o", "ffn.gate", "ffn.up", "ffn.down")


@dataclass(frozen=True)
class Stored:
    """A matrix as a file holds it. codes: int8 [rows, columns]; scales: float32 [rows, groups]."""

    codes: np.ndarray
    scales: np.ndarray

    @property
    def bits(self) -> tuple[tuple[int, ...], bytes, bytes]:
        return self.codes.shape, self.codes.tobytes(), self.scales.tobytes()


def halves(packed: np.ndarray) -> np.ndarray:
    """uint8 [rows, n] -> int8 [rows, 2 n]: the low half of a byte, then the high one; 8 stands for zero."""
    codes = [[value for byte in row for value in (byte % 16 - 8, byte // 16 - 8)] for row in packed.tolist()]
    return np.array(codes, np.int8)


# --- reading an .onnx: by the onnx package, and the operators' documentation ------------------------------------------


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def place(tensor: onnx.TensorProto) -> tuple[int, int] | None:
    """Offset and length in the data file; None for one that lies in the graph."""
    held = {entry.key: entry.value for entry in tensor.external_data}
    assert held.get("location", "model.onnx.data") == "model.onnx.data"
    return (int(held["offset"]), int(held["length"])) if held else None


@functools.cache
def onnx_matrices(folder: Path) -> dict[str, Stored]:
    """Node -> what it multiplies with or gathers from."""
    graph = graph_of(folder)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        given = {attribute.name: attribute.i for attribute in node.attribute}
        codes, scales = (node.input[i] for i in ((1, 2) if node.op_type == "MatMulNBits" else (0, 2)))
        packed, steps = (onnx.numpy_helper.to_array(tensors[name], str(folder)) for name in (codes, scales))
        packed = packed.reshape(packed.shape[0], -1)
        unpacked = halves(packed) if given["bits"] == 4 else (packed.astype(np.int16) - 128).astype(np.int8)
        assert unpacked.shape[1] == given["block_size"] * steps.shape[1]
        if given["bits"] == 8:  # one scale a channel, written for every block
            assert (steps == steps[:, :1]).all()
            steps = steps[:, :1].copy()
        found[node.name] = Stored(unpacked, steps)
    return found


# --- reading a .pte: by executorch's own reader and flatc with its schema ----------------------------------------------


@functools.cache
def pte_of(recipe: str, tied: bool) -> Path:
    if tied:
        return artifact(checkpoint(), "--recipe", recipe) / "model.pte"  # test_pte asks for the same ones
    return program_file(weights_of(checkpoint(tied=False), recipe), Path(ROOM.name) / f"untied-{recipe}.pte")


@functools.cache
def pte_matrices(recipe: str, tied: bool) -> tuple[tuple[Stored, ...], Stored]:
    """What the delegates multiply with, one entry for each in the order they run; and the table the gather reads."""
    file = deserialize_pte_binary(pte_of(recipe, tied).read_bytes())
    named = {key: bytes(file.named_data.buffers[at.buffer_index]) for key, at in file.named_data.pte_data.items()}
    found = []
    for payload in (bytes(entry.data) for entry in file.program.backend_delegate_data):
        graph = decompiled(payload[int.from_bytes(payload[10:14], "little") :])
        constants = [named.get(entry.get("named_key", ""), b"") for entry in graph["constant_data"]]
        values = [value["xvalue_union"] for value in graph["xvalues"]]
        quantized = {value["tensor_value"]["id_out"]: value for value in values if "quant_params" in value}
        for node in graph["xnodes"]:
            value = quantized.get(node["xnode_union"].get("filter_id"))
            if value is not None:
                tensor, shape = value["tensor_value"], value["tensor_value"]["dims"]
                scales = constants[value["quant_params"]["scale_buffer_idx"]]
                found.append(stored(constants[tensor["constant_buffer_idx"]], scales, shape, tensor["datatype"]))
    plan = file.program.execution_plan[0]
    (gather,) = [
        instruction.instr_args
        for instruction in plan.chains[0].instructions
        if "embedding" in getattr(plan.operators[getattr(instruction.instr_args, "op_index", 0)], "name", "")
    ]
    codes, scales = (plan.values[argument].val for argument in gather.args[:2])
    held, steps = (bytes(file.program.constant_buffer[tensor.data_buffer_idx].storage) for tensor in (codes, scales))
    rows, width = codes.sizes
    if recipe == "w4-all-fast":  # embedding_4bit: 64 channels in 32 bytes, two groups a row
        kind = np.float16 if scales.scalar_type.name == "HALF" else np.float32
        packed = np.frombuffer(held, np.uint8)[: rows * width].reshape(rows, width)
        groups = np.frombuffer(steps, kind)[: rows * width // 16].reshape(rows, -1)
        return tuple(found), Stored(halves(packed), groups.astype(np.float32))
    return tuple(found), stored(held[: rows * width], steps[: 4 * rows], [rows, width], "xnn_datatype_qcint8")


def decompiled(graph: bytes) -> dict:
    with tempfile.TemporaryDirectory() as room:
        schema = resources.files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes()
        (Path(room) / "schema.fbs").write_bytes(schema)
        (Path(room) / "graph.bin").write_bytes(graph)
        _flatc_decompile(room, str(Path(room) / "schema.fbs"), str(Path(room) / "graph.bin"), ["--raw-binary"])
        return json.loads((Path(room) / "graph.json").read_text())


def stored(codes: bytes, scales: bytes, shape: list[int], kind: str) -> Stored:
    """XNNPACK's two kinds of weights: 4-bit codes with bfloat16 scales, 8-bit codes with float32 ones."""
    rows, columns = shape
    if kind == "xnn_datatype_qbint4":
        upper = np.frombuffer(scales, np.uint16).astype(np.uint32) << 16
        return Stored(
            halves(np.frombuffer(codes, np.uint8).reshape(rows, columns // 2)), upper.view(np.float32).reshape(rows, -1)
        )
    assert kind == "xnn_datatype_qcint8"
    return Stored(np.frombuffer(codes, np.int8).reshape(rows, columns), np.frombuffer(scales, np.float32).reshape(rows, 1))


# --- one number --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_codes_and_scales_are_those_of_the_pte_to_the_bit(recipe, tied):
    ours = onnx_matrices(onnx_artifact(checkpoint(tied=tied), "--recipe", recipe, "--no-verify"))
    products, table = pte_matrices(recipe, tied)
    table_here = ours["embedding"]
    multiplied = [stored for node, stored in ours.items() if node != "embedding"]
    assert len(multiplied) == len(products) == 2 * len(MATRICES) + 1
    assert len({matrix.bits for matrix in products}) == len(products), "no two are alike, so none can stand for another"
    assert {matrix.bits for matrix in multiplied} == {matrix.bits for matrix in products}
    assert table_here.bits == table.bits
    assert (ours["head.linear"].bits == table_here.bits) == tied
    assert {len(np.unique(matrix.codes)) for matrix in products} <= {16, *range(100, 256)}, "every code is used"


# --- one copy ----------------------------------------------------------------------------------------------------------

WIDE = {"hidden": 256, "heads": 4, "kv_heads": 2, "ffn": 512}
ORDERS = [("immediate", [0, 0, 1, 1]), ("repeat-all-over", [0, 1, 0, 1]), ("0,1,0,0,0", [0, 1, 0, 0, 0])]


def exported(recipe: str, schedule: str | None = None) -> Path:
    arguments = ("--schedule", schedule) if schedule else ()
    return onnx_artifact(checkpoint(**WIDE), "--recipe", recipe, "--no-verify", *arguments)


@pytest.mark.parametrize(("schedule", "order"), ORDERS, ids=[name for name, _ in ORDERS])
@pytest.mark.parametrize("recipe", ["w4-fast", "fp32"])
def test_every_execution_of_a_block_uses_the_same_initializers(recipe, schedule, order):
    graph = graph_of(exported(recipe, schedule))
    names = [tensor.name for tensor in graph.initializer]
    assert len(names) == len(set(names))
    uses = [used_by(graph, names, f"execution.{slot}.") for slot in range(len(order))]
    assert [{name for name in found if name.startswith("blocks.")} for found in uses] == [
        {name for name in names if name.startswith(f"blocks.{stored}.")} for stored in order
    ]
    assert len({name for name in names if name.startswith("blocks.0.")}) == (12 if recipe == "w4-fast" else 7)
    held = {tensor.name: tensor.SerializeToString() for tensor in graph.initializer}
    assert held == {tensor.name: tensor.SerializeToString() for tensor in graph_of(exported(recipe)).initializer}


def used_by(graph: onnx.GraphProto, names: list[str], prefix: str) -> set[str]:
    nodes = [node for node in graph.node if node.name.startswith(prefix)]
    assert nodes
    return {value for node in nodes for value in node.input} & set(names)


@pytest.mark.parametrize("recipe", ["w4-fast", "fp32"])
def test_a_shared_models_data_file_is_the_bases_and_its_graph_a_few_nodes_larger(recipe):
    base = exported(recipe)
    for schedule, order in ORDERS:
        shared = exported(recipe, schedule)
        assert (shared / "model.onnx.data").read_bytes() == (base / "model.onnx.data").read_bytes()
        larger = (shared / "model.onnx").stat().st_size - (base / "model.onnx").stat().st_size
        assert 0 < larger < 8_000 * (len(order) - 2), "nodes and names alone; a block's weights are 300 kB"
        audit = audit_artifact(shared / "model.onnx", recipe == "fp32")
        assert audit.clean, audit.lines()


@pytest.mark.parametrize("recipe", [*RECIPES, "fp32"])
def test_the_data_file_is_the_sum_of_its_ranges_and_what_aligns_them(recipe):
    folder = exported(recipe)
    ranges = sorted({place(tensor) for tensor in graph_of(folder).initializer} - {None})
    end = 0
    for offset, length in ranges:
        assert offset % ALIGNMENT == 0
        assert 0 <= offset - end < ALIGNMENT, "neither overlapping nor apart"
        end = offset + length
    assert end == (folder / "model.onnx.data").stat().st_size
    parts = {part["name"]: part["bytes"] for part in manifest(folder)["parts"]}
    assert sum(parts.values()) == sum(file["bytes"] for file in manifest(folder)["files"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tied_tables_two_names_cover_one_range(recipe):
    folder = onnx_artifact(checkpoint(), "--recipe", recipe, "--no-verify")
    at = {tensor.name: (place(tensor), tuple(tensor.dims)) for tensor in graph_of(folder).initializer}
    (rows, flat), (codes, blocks) = at["embedding.weight.rows"], at["embedding.weight.codes"]
    size = 96 * 64 // (2 if recipe == "w4-all-fast" else 1)
    assert rows == codes
    assert rows is not None
    assert rows[1] == size
    assert np.prod(flat) == np.prod(blocks) == size
    (gather,) = [node for node in graph_of(folder).node if node.name == "embedding"]
    (head,) = [node for node in graph_of(folder).node if node.name == "head.linear"]
    assert list(gather.input) == ["embedding.weight.rows", "input_ids", "embedding.weight.scales"]
    assert list(head.input[1:]) == ["embedding.weight.codes", "embedding.weight.scales"]


@pytest.mark.parametrize("recipe", [*RECIPES, "fp32"])
def test_a_head_of_its_own_is_stored_beside_the_table(recipe):
    tied, untied = (onnx_artifact(checkpoint(tied=tied), "--recipe", recipe, "--no-verify") for tied in (True, False))
    sizes = [(folder / "model.onnx.data").stat().st_size for folder in (tied, untied)]
    table = {"w4-fast": 6144, "w8-fast": 6144, "w4-all-fast": 3072, "fp32": 24_576}[
        recipe
    ]  # the graph holds its scales: they are few
    assert 0 <= sizes[1] - sizes[0] - table < ALIGNMENT
    parts = {part["name"]: part["bytes"] for part in manifest(untied)["parts"]}
    assert parts["head"] == parts["embedding"] == table


@pytest.mark.parametrize(("schedule", "order"), [(None, [0, 1]), *ORDERS], ids=["base", *(name for name, _ in ORDERS)])
def test_every_execution_has_a_cache_of_its_own(schedule, order):
    graph = graph_of(exported("w4-fast", schedule))
    slots = [f"{slot}.{part}" for slot, part in itertools.product(range(len(order)), ("key", "value"))]
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask", *(f"past_key_values.{s}" for s in slots)]
    assert [value.name for value in graph.output] == ["logits", *(f"present.{s}" for s in slots)]
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert [list(node.input[3:5]) for node in attention] == [
        [f"past_key_values.{slot}.{part}" for part in ("key", "value")] for slot in range(len(order))
    ]
    assert [list(node.output[1:3]) for node in attention] == [
        [f"present.{slot}.{part}" for part in ("key", "value")] for slot in range(len(order))
    ]
    assert manifest(exported("w4-fast", schedule))["kv_cache"]["slots"] == len(order)


RESIDENT = """
import sys, numpy as np, onnxruntime
def anonymous(): return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before = anonymous()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(anonymous() - before)
"""


def resident_bytes(folder: Path) -> int:
    """Anonymous memory a process gains by loading an artifact in plain onnxruntime, the least of four.

    Between runs it differs by up to 2 MB: what the allocator happens to keep of what loading freed.
    """
    command = [sys.executable, "-c", RESIDENT, str(folder / "model.onnx")]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(4)]
    return min(int(run.stdout.split()[-1]) for run in runs)


def test_shared_blocks_are_packed_once_by_the_runtime():
    """Base, shared (each block four times) and an unshared twin with as many executions, in onnxruntime 1.28 or newer."""
    wide = {"hidden": 512, "heads": 8, "kv_heads": 2, "ffn": 1536}
    base = onnx_artifact(checkpoint(**wide), "--no-verify")
    shared = onnx_artifact(checkpoint(**wide), "--no-verify", "--schedule", "0,0,0,0,1,1,1,1")
    unshared = onnx_artifact(checkpoint(**wide, blocks=8), "--no-verify")
    block = next(part["bytes"] for part in manifest(base)["parts"] if part["name"] == "blocks") // 2
    resident = {folder: resident_bytes(folder) for folder in (base, shared, unshared)}
    assert resident[shared] - resident[base] <= 2_500_000 < 2 * block
    assert resident[unshared] - resident[base] >= 4 * block, "the twin does hold its blocks, so the measure can tell"
