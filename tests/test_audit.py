"""The audit of a finished file: ours are clean, every kind of fault is seen, and no damaged file brings it down.

Most .pte faults are made by editing a good file's bytes or by breaking the emitter for one build; ONNX models are written
by hand, a rule each.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
import torch
from executorch.exir import schema
from executorch.exir._serialize._flatbuffer_program import _program_to_flatbuffer
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir.schema import ScalarType
from exported import ROOM, checkpoint, program_file, weights_of
from onnx import TensorProto, helper, numpy_helper

from mobile_export.audit import audit_artifact, program, xnnpack
from mobile_export.audit.fixed import is_weight_matrix
from mobile_export.audit.payloads import SMALL, Audit
from mobile_export.emit.executorch import segments
from mobile_export.emit.executorch.pieces import constants_of
from mobile_export.errors import InputError
from mobile_export.quantize.recipe import Precision

TABLE = 96 * 64  # bytes of the tiny model's 8-bit table


@functools.cache
def pte(recipe: str = "w4-fast", schedule: str | None = None, tied: bool = True) -> Path:
    """A .pte of the tiny Llama, built once for all tests here."""
    path = Path(ROOM.name) / f"audit-{recipe}-{schedule}-{tied}.pte"
    return program_file(weights_of(checkpoint(tied=tied), recipe, schedule), path)


def refusal(path: Path) -> str:
    """The line an audit refuses a file with."""
    with pytest.raises(InputError) as error:
        audit_artifact(path)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


# --- .pte: our own files ---------------------------------------------------------------------------------------------


OURS = [("w4-fast", None, True), ("w4-fast", "immediate", True), ("w4-fast", None, False), ("fp32", None, True)]


@pytest.mark.parametrize(("recipe", "schedule", "tied"), OURS)
def test_our_own_files_hold_everything_once(recipe, schedule, tied):
    audit = audit_artifact(pte(recipe, schedule, tied))
    assert audit.clean
    assert audit.distinct == len(audit.payloads)
    assert audit.wasted_bytes == 0
    assert bool(audit.float_matrices) == audit.float_expected == (recipe == "fp32")
    assert audit.unread == ()
    weights = weights_of(checkpoint(tied=tied), recipe, schedule)
    stored = {payload.sha256 for payload in audit.payloads}
    for name in weights.matrices:
        values = weights.float32(name) if recipe == "fp32" else weights.quantized(name)
        for constant in constants_of(values):
            assert len(constant.data) < SMALL or hashlib.sha256(constant.data).hexdigest() in stored, name


def test_a_tied_table_is_one_payload_of_three_names():
    (table,) = [payload for payload in audit_artifact(pte()).payloads if payload.shape == (96, 64)]
    assert table.names[0] == "constant 1 (quantized_decomposed::embedding_byte)"
    assert [name.split()[0] for name in table.names] == ["constant", "delegate", "named"]
    assert (table.bytes, table.dtype) == (TABLE, "int8")
    assert pte().read_bytes()[table.offset :][:TABLE] == _constant_of_the_table(pte())


def _constant_of_the_table(path: Path) -> bytes:
    """The tied table's bytes as the emitter made them, not as the audit found them."""
    data = constants_of(weights_of(checkpoint()).quantized("embedding.weight"))[0].data
    assert path.read_bytes().count(data) == 1
    return data


def test_a_shared_model_stores_what_the_base_stores():
    """All but the graphs, which differ in nothing here either, and the calls, which are no payload."""
    base, shared = audit_artifact(pte()), audit_artifact(pte(schedule="immediate"))
    assert {payload.sha256 for payload in shared.payloads} == {payload.sha256 for payload in base.payloads}
    assert shared.stored_bytes == base.stored_bytes


def test_an_untied_model_has_two_tables_and_a_tied_one_has_one():
    shapes = [[payload.shape for payload in audit_artifact(pte(*which)).payloads] for which in (OURS[0], OURS[2])]
    assert [found.count((96, 64)) for found in shapes] == [1, 2]


def test_small_matrices_of_the_arithmetic_are_no_weights_left_in_float():
    """The permutation that swaps a head's halves is a float linear in every attention piece."""
    audit = audit_artifact(pte(), float_expected=False)
    assert any(p.shape == (16, 16) and p.dtype == "float32" for p in audit.payloads), "the permutation is there"
    assert audit.float_matrices == ()


# --- .pte: faults ----------------------------------------------------------------------------------------------------


def with_copies_at_the_end(source: Path, path: Path, *, repointed: int, padding: int = 0) -> Path:
    """A .pte with the last segments copied behind its end, and the first few of those entries pointed at the copies."""
    file = bytearray(source.read_bytes())
    header = segments._get_extended_header(bytes(file[:256]))
    base = header.segment_base_offset
    for segment in segments._segments(bytes(file[: header.program_size]))[-4:]:
        copy = bytes(file[base + segment.Offset() : base + segment.Offset() + segment.Size()])
        file += bytes(-len(file) % 16 + padding)
        if repointed:
            place = segment._tab.Pos + segment._tab.Offset(segments.DATA_SEGMENT_OFFSET)
            file[place : place + 8] = (len(file) - base).to_bytes(8, "little")
            repointed -= 1
        file += copy
    path.write_bytes(file)
    return path


def test_a_table_stored_twice(tmp_path):
    """As the stock emitter does it: the gather reads one copy, the head a segment of its own."""
    audit = audit_artifact(with_copies_at_the_end(pte(), tmp_path / "model.pte", repointed=4))
    assert not audit.clean
    (table,) = audit.duplicates
    assert (table.bytes, table.wasted_bytes, table.shape) == (TABLE, TABLE, (96, 64))
    assert [[name.split()[0] for name in names] for names in table.names] == [["constant"], ["delegate", "named"]]
    assert audit.distinct == len(audit.payloads) - 1
    assert audit.lines() == [
        "audit    20 payloads, 73.3 kB, 19 distinct; no matrix in float",
        "twice    6.1 kB too many, 2 copies int8 [96, 64]: constant 1 (quantized_decomposed::embedding_byte), "
        "delegate 4, constant 3",
    ]


def test_bytes_nothing_refers_to(tmp_path):
    padded = with_copies_at_the_end(pte(), tmp_path / "model.pte", repointed=0, padding=1 << 16)
    audit = audit_artifact(padded)
    assert not audit.clean
    (gap,) = audit.unused
    assert gap.offset == pte().stat().st_size
    assert gap.bytes == padded.stat().st_size - gap.offset
    assert audit.lines()[1].startswith("unused   0.27 MB of model.pte from byte ")
    assert audit_artifact(with_copies_at_the_end(pte(), tmp_path / "b.pte", repointed=0)).clean, "short of alignment's"


def test_linears_and_a_table_left_in_float(tmp_path):
    """A feed-forward inside its delegate; the table outside, where the head inside one reads the same bytes."""
    weights = weights_of(checkpoint())
    left = ["embedding.weight", *(f"blocks.1.ffn.{name}.weight" for name in ("o", "gate", "up", "down"))]
    for name in left:
        weights.matrices[name] = dataclasses.replace(weights.matrices[name], precision=Precision(32))
    path = program_file(weights, tmp_path / "model.pte")
    audit = audit_artifact(path)
    assert not audit.clean
    assert sorted((found.dtype, found.shape, found.bytes) for found in audit.float_matrices) == sorted(
        ("float32", weights.matrices[name].shape, 4 * weights.matrices[name].parameters) for name in left
    )
    names = [found.name for found in audit.float_matrices]
    assert sorted(name.split(", ")[0] for name in names) == ["constant 1 (aten::embedding)", *["delegate 3"] * 4]
    assert audit.lines()[1] == f"float    32.8 kB float32 [128, 64]: {names[0]}"
    assert audit.duplicates == ()
    assert audit_artifact(path, float_expected=True).clean


# --- .pte: another exporter's ----------------------------------------------------------------------------------------


def by_hand(calls: list[tuple[str, list[int]]], state: bool = False) -> schema.Program:
    """A program of plain operators: values 0 to 5 are tokens, start, a token table, a matrix, codes and a state; 6 to 9
    are made by the calls."""
    place = schema.AllocationDetails(1, 0, 0)

    def tensor(kind: ScalarType, sizes: list[int], index: int, allocation: schema.AllocationDetails | None) -> schema.EValue:
        order = list(range(len(sizes)))
        static = schema.TensorShapeDynamism.STATIC
        return schema.EValue(schema.Tensor(kind, 0, sizes, order, False, 0, index, allocation, static))

    values = [
        tensor(ScalarType.LONG, [1, 4], 0, place),
        tensor(ScalarType.LONG, [1], 0, place),
        tensor(ScalarType.FLOAT, [96, 64], 1, None),
        tensor(ScalarType.HALF, [64, 64], 2, None),
        tensor(ScalarType.CHAR, [64, 64], 3, None),
        tensor(ScalarType.FLOAT, [16, 32], int(state), place),
        *(tensor(ScalarType.FLOAT, [4, 64], 0, place) for _ in range(4)),
    ]
    names = [name for name, _ in calls]
    instructions = [schema.Instruction(schema.KernelCall(at, arguments)) for at, (_, arguments) in enumerate(calls)]
    payload = schema.BackendDelegateDataReference(schema.DataLocation.INLINE, 0)
    plan = schema.ExecutionPlan(
        "forward",
        schema.ContainerMetadata("", ""),
        values,
        [0, 1],
        [9],
        [schema.Chain([], [], instructions, None)],
        [schema.Operator(name, "out") for name in names],
        [schema.BackendDelegate("QnnBackend", payload, [])],
        [0, 1000],
    )
    noise = np.random.default_rng(1)
    constants = [b"", noise.bytes(4 * 96 * 64), noise.bytes(2 * 64 * 64), noise.bytes(64 * 64)]
    inline = [schema.BackendDelegateInlineData(noise.bytes(2000))]
    return schema.Program(0, [plan], [schema.Buffer(c) for c in constants], inline, [], schema.SubsegmentOffsets(0, []), [], [])


@pytest.mark.parametrize("inside", [True, False], ids=["in-the-flatbuffer", "in-segments"])
def test_a_program_of_plain_operators(tmp_path, inside):
    """Constants in the flatbuffer are what ExecuTorch wrote until 2024."""
    calls = [
        ("aten::embedding", [2, 0, -1, 6]),
        ("aten::permute_copy", [3, -1, 7]),
        ("aten::mm", [6, 7, 8]),
        ("quantized_decomposed::embedding_byte", [4, 0, 9]),
    ]
    made, path = by_hand(calls, state=not inside), tmp_path / "model.pte"
    if inside:
        path.write_bytes(_program_to_flatbuffer(made).data)
    else:
        state = [schema.Buffer(b""), schema.Buffer(bytes(range(256)) * 8)]
        path.write_bytes(bytes(serialize_pte_binary(PTEFile(made, state), extract_delegate_segments=True)))
    audit = audit_artifact(path)
    assert [(found.name, found.dtype, found.shape) for found in audit.float_matrices] == [
        ("constant 1 (aten::embedding)", "float32", (96, 64)),
        ("constant 2 (aten::mm)", "float16", (64, 64)),
    ]
    names = sorted(payload.names[0] for payload in audit.payloads)
    stored = ["constant 1 (aten::embedding)", "constant 2 (aten::permute_copy)"]
    stored += ["constant 3 (quantized_decomposed::embedding_byte)", "delegate 0 of QnnBackend"]
    assert names == stored + ["initial state 1"] * (not inside)
    assert audit.unread == ("delegates of QnnBackend: hashed whole, not looked into",)
    assert audit.unused == ()


@pytest.mark.parametrize(
    "calls",
    [
        [("aten::embedding", [2, 1, 6])],
        [("aten::sym_size", [0, -1, 7]), ("aten::arange", [7, 8]), ("aten::embedding", [2, 8, 6])],
        [("aten::add", [6, 3, 7]), ("aten::slice_copy", [2, 1, 8])],
        [("aten::permute_copy", [7, 8]), ("aten::permute_copy", [8, 7]), ("aten::mm", [6, 7, 9])],
    ],
    ids=["rows by the start", "rows by how many tokens there are", "a bias and a rotary table", "views in a circle"],
)
def test_floats_of_a_pte_that_are_no_weights(tmp_path, calls):
    path = tmp_path / "model.pte"
    path.write_bytes(_program_to_flatbuffer(by_hand(calls)).data)
    assert audit_artifact(path, float_expected=False).float_matrices == ()


def test_a_tensor_whose_bytes_are_not_there(tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(_program_to_flatbuffer(by_hand([], state=True)).data)
    assert "constant 1 is not there" in refusal(path)
    longer = by_hand([])
    longer.execution_plan[0].values[3].val.sizes = [64, 65]
    path.write_bytes(_program_to_flatbuffer(longer).data)
    assert "constant 2: 8,320 bytes where 8,192 are" in refusal(path)


# --- .pte: the format ------------------------------------------------------------------------------------------------


def fields_of(text: str) -> dict[str, dict[str, int]]:
    """Table or union -> FIELD -> number, from the text of a .fbs; a union's field takes two numbers."""
    text = re.sub(r"//.*", "", text)
    unions = re.findall(r"union (\w+) \{(.*?)\}", text, re.DOTALL)
    named = {union for union, _ in unions}
    found = {}
    for union, members in unions:
        names = [member.split(":")[0].strip() for member in members.split(",") if member.strip()]
        found[union] = {name.upper(): number for number, name in enumerate(names, start=1)}
    for table, body in re.findall(r"table (\w+) \{(.*?)\}", text, re.DOTALL):
        number, fields = 0, {}
        for name, kind in re.findall(r"(\w+)\s*:\s*(\[?\w+\]?)", re.sub(r"\(.*?\)", "", body)):
            number += kind in named
            fields[name.upper()] = number
            number += 1
        found[table] = fields
    return found


@pytest.mark.parametrize(
    ("module", "package", "file"),
    [
        (program, "executorch.exir._serialize", "program.fbs"),
        (xnnpack, "executorch.backends.xnnpack.serialization", "schema.fbs"),
    ],
)
def test_field_numbers_are_those_of_the_installed_schema(module, package, file):
    fields = fields_of(resources.files(package).joinpath(file).read_text())
    used = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, program.IntEnum)]
    used = [kind for kind in used if kind is not program.IntEnum]
    assert len(used) > 10
    for kind in used:
        for field, member in kind.__members__.items():
            assert fields[kind.__name__][field] == member, f"{kind.__name__}.{field}"


def test_types_are_those_of_the_installed_executorch():
    from executorch.exir.tensor import scalar_type_enum

    for number, (name, size) in program.TYPES.items():
        unsigned = name.startswith("uint") and name != "uint8"
        assert (ScalarType[name.upper()] if unsigned else scalar_type_enum(getattr(torch, name))) == number
        assert getattr(torch, name).itemsize == size
    text = resources.files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_text()
    names = {int(number): name for name, number in re.findall(r"xnn_datatype_(\w+) = (\d+)", text)}
    for number, name in xnnpack.DTYPES.items():
        assert re.fullmatch("(q[cb]?)?" + name.replace("bfloat", "bf").replace("float", "fp"), names[number])


def test_a_delegate_reads_as_executorch_reads_it(tmp_path):
    """flatc with the installed schema, sharing no code with ours."""
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    file = program.open_pte(pte())
    begin, end = file.plans[0].delegates[1].span
    payload = bytes(file.view[begin:end])
    (tmp_path / "graph.bin").write_bytes(payload[int.from_bytes(payload[10:14], "little") :])
    text = resources.files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes()
    (tmp_path / "schema.fbs").write_bytes(text)
    _flatc_decompile(str(tmp_path), str(tmp_path / "schema.fbs"), str(tmp_path / "graph.bin"), ["--raw-binary"])
    want = json.loads((tmp_path / "graph.json").read_text())
    got = xnnpack.read_xnnpack("", file.view[begin:end])
    assert [constant.key for constant in got.constants] == [entry.get("named_key", "") for entry in want["constant_data"]]
    filters = [n["xnode_union"]["filter_id"] for n in want["xnodes"] if n["xnode_union_type"] == "XNNFullyConnected"]
    values = [value["xvalue_union"] for value in want["xvalues"]]
    tensors = {t["id_out"]: t for t in (value.get("tensor_value", value) for value in values)}
    assert [weight.shape for weight in got.weights] == [tuple(tensors[i]["dims"]) for i in filters]
    kinds = {"xnn_datatype_qbint4": "int4", "xnn_datatype_fp32": "float32"}
    assert [weight.dtype for weight in got.weights] == [kinds[tensors[i]["datatype"]] for i in filters]
    assert [weight.quantized for weight in got.weights] == [tensors[i]["datatype"] != "xnn_datatype_fp32" for i in filters]
    assert len(filters) == 5  # o, the norm's mean, gate, up, down


def test_a_pte_cut_off_anywhere(tmp_path):
    whole, path = pte().read_bytes(), tmp_path / "model.pte"
    for length in (1, 3, 7, 11, 40, 300, 2_000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith(f"{path}: is ")
    path.write_bytes(whole[:-1])
    assert refusal(path).endswith("; export or download it again")
    path.write_bytes(b"")
    assert refusal(path) == f"{path}: is empty; export or download it again"
    path.write_bytes(b"PK\3\4" + bytes(99))
    assert refusal(path) == f"{path}: is not an ExecuTorch program; name a .pte file"


def test_a_name_longer_than_the_file(tmp_path):
    file, path = bytearray(pte().read_bytes()), tmp_path / "model.pte"
    at = file.index(b"scale_")
    file[at - 4 : at] = (0x7FFFFFFF).to_bytes(4, "little")
    path.write_bytes(file)
    assert "(2,147,483,647 bytes at byte " in refusal(path)


def test_a_pte_with_bytes_changed_at_random_is_audited_or_refused(tmp_path):
    whole, path, chance = pte().read_bytes(), tmp_path / "model.pte", random.Random(0)
    header = segments._get_extended_header(whole[:256])
    delegates = [delegate.span for plan in program.open_pte(pte()).plans for delegate in plan.delegates]
    refused = 0
    for trial in range(300):
        begin, end = (0, header.program_size) if trial % 2 else chance.choice(delegates)
        file = bytearray(whole)
        for _ in range(chance.choice((1, 20))):
            file[chance.randrange(begin, end)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        path.write_bytes(file)
        try:
            audit_artifact(path)
        except InputError:
            refused += 1
    assert 50 < refused < 300


def test_a_small_file_that_unfolds_without_end_is_refused(tmp_path):
    """Every method of it is the same table, and every value of that the same: 40 kB that stand for 25 million values."""
    path, builder, many = tmp_path / "model.pte", flatbuffers.Builder(0), 5000

    def vector(entry: int) -> int:
        builder.StartVector(4, many, 4)
        for _ in range(many):
            builder.PrependUOffsetTRelative(entry)
        return builder.EndVector()

    def table(fields: int, at: int, value: int) -> int:
        builder.StartObject(fields)
        builder.PrependUOffsetTRelativeSlot(at, value, 0)
        return builder.EndObject()

    plans = vector(table(9, program.ExecutionPlan.VALUES, vector(table(2, 0, 0))))
    builder.Finish(table(8, program.Program.EXECUTION_PLAN, plans), file_identifier=b"ET12")
    path.write_bytes(builder.Output())
    assert path.stat().st_size < 50_000
    assert "5,000 entries at byte" in refusal(path)


# --- which file ------------------------------------------------------------------------------------------------------


def test_what_is_no_artifact_file(tmp_path):
    assert refusal(tmp_path / "model.bin").endswith("neither a .pte, a .onnx nor an .mlpackage; name the artifact's file")
    for suffix in (".pte", ".onnx"):
        assert refusal(tmp_path / f"gone{suffix}").endswith("no such file; name an artifact's file")
        (tmp_path / f"folder{suffix}").mkdir()
        assert refusal(tmp_path / f"folder{suffix}").endswith("not a regular file; name an artifact's file")


def test_importing_the_audit_and_reading_a_pte_import_nothing_heavy():
    code = """
import sys
from pathlib import Path
from mobile_export.audit import audit_artifact
assert audit_artifact(Path(sys.argv[1])).clean
print(*{"torch", "executorch", "onnx"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code, str(pte())], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- .onnx -----------------------------------------------------------------------------------------------------------


RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(0, 255, (64, 2, 16), dtype=np.uint8)  # MatMulNBits: 64 outputs, 64 inputs in groups of 32
OTHER = RANDOM.integers(0, 255, (64, 2, 16), dtype=np.uint8)
FLOATS = RANDOM.standard_normal((64, 64)).astype(np.float32)


def inline(name: str, values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(values, name)


def external(name: str, values: np.ndarray, offset: object, length: object = None, location: str = "model.onnx.data"):
    """An initializer that names a byte range; the data file is written by the test."""
    tensor = TensorProto(name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def quantized_linear(weight: str = "w") -> onnx.NodeProto:
    inputs = ["x", weight, "scales"]
    return helper.make_node("MatMulNBits", inputs, [f"y_{weight}"], f"mm_{weight}", domain="com.microsoft", K=64, N=64, bits=4)


def write(
    folder: Path,
    nodes: Iterable[onnx.NodeProto],
    tensors: Iterable[TensorProto],
    inputs: Iterable[str] = ("input_ids", "position_ids"),
    data: bytes | None = None,
) -> Path:
    """A model of these nodes and initializers, with x float and the other inputs int64, and its data file."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", 64])]
    given += [helper.make_tensor_value_info(name, TensorProto.INT64, ["t"]) for name in inputs]
    graph = helper.make_graph(list(nodes), "g", given, [], initializer=list(tensors))
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    if data is not None:
        (folder / "model.onnx.data").write_bytes(data)
    return path


def test_two_initializers_over_one_range_are_one_payload(tmp_path):
    tensors = [external("embed", CODES, 0, 2048), external("head", CODES.reshape(64, 32), 0, 2048), external("w", OTHER, 4096)]
    data = CODES.tobytes() + bytes(2048) + OTHER.tobytes()
    audit = audit_artifact(write(tmp_path, [quantized_linear()], tensors, data=data))
    assert audit.clean
    assert [(payload.names, payload.offset, payload.bytes) for payload in audit.payloads] == [
        (("embed", "head"), 0, 2048),
        (("w",), 4096, 2048),
    ]
    assert {payload.file for payload in audit.payloads} == {"model.onnx.data"}
    assert audit.payloads[0].sha256 == hashlib.sha256(CODES.tobytes()).hexdigest()
    assert audit.lines() == ["audit    2 payloads, 4.1 kB, each stored once; no matrix in float"]


def test_equal_bytes_at_two_places_are_a_duplicate(tmp_path):
    tensors = [external("a", CODES, 0), external("b", CODES, 2048), external("c", OTHER, 4096), inline("d", CODES)]
    path = write(tmp_path, [quantized_linear("a")], tensors, data=CODES.tobytes() * 2 + OTHER.tobytes())
    audit = audit_artifact(path)
    assert not audit.clean
    (found,) = audit.duplicates
    assert found.names == (("a",), ("b",), ("d",))
    assert (found.bytes, found.wasted_bytes, audit.distinct, len(audit.payloads)) == (2048, 4096, 2, 4)
    assert audit.lines()[1] == "twice    4.1 kB too many, 3 copies uint8 [64, 2, 16]: a, b, d"


def test_one_location_written_in_two_ways_is_one_file(tmp_path):
    tensors = [external("a", CODES, 0), external("b", CODES, 0, location="./model.onnx.data")]
    audit = audit_artifact(write(tmp_path, [quantized_linear("a")], tensors, data=CODES.tobytes()))
    assert audit.clean
    assert [payload.names for payload in audit.payloads] == [("a", "b")]


def test_small_tensors_are_not_counted(tmp_path):
    small = np.ones(SMALL // 4 - 1, np.float32)
    audit = audit_artifact(write(tmp_path, [quantized_linear()], [inline("a", small), inline("b", small), inline("w", CODES)]))
    assert audit.clean
    assert [payload.names for payload in audit.payloads] == [("w",)]
    large = np.ones(SMALL // 4, np.float32)
    assert not audit_artifact(write(tmp_path, [quantized_linear()], [inline("a", large), inline("b", large)])).clean


def test_values_in_typed_fields_are_compared_by_their_bytes(tmp_path):
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [64, 64], FLOATS.flatten().tolist())
    audit = audit_artifact(write(tmp_path, [quantized_linear()], [typed, inline("raw", FLOATS)]))
    assert [found.names for found in audit.duplicates] == [(("typed",), ("raw",))]


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ([external("a", CODES, 0), external("b", CODES, 1024)], "2,048 bytes from byte 0 overlap 2,048 from byte 1,024"),
        ([external("a", CODES, 0), external("b", CODES[:32], 0)], "1,024 bytes from byte 0 overlap 2,048 from byte 0"),
        ([external("a", CODES, 2049)], "a: 2,048 bytes from byte 2,049 leave the file's 4,096"),
        ([external("a", CODES, -16)], "a: offset '-16' is no count of bytes"),
        ([external("a", CODES, 0, "1e3")], "a: length '1e3' is no count of bytes"),
        ([external("a", CODES, 0, 2047)], "a: uint8 [64, 2, 16] takes 2,048 bytes, 2,047 are named"),
        (
            [external("a", CODES, 0, location="../model.onnx.data")],
            "a: its data lies at '../model.onnx.data', outside the folder",
        ),
        ([external("a", CODES, 0, location="b/../../x")], "outside the folder"),
        ([external("a", CODES, 0, location="/etc/passwd")], "outside the folder"),
        ([external("a", CODES, 0, location="")], "outside the folder"),
        ([external("a", CODES, 0, location="other.data")], "a: its data file other.data is not there"),
        ([external("a", CODES, 0, location=".")], "outside the folder"),
        ([external("a", CODES, 0), external("a", CODES, 2048)], "two tensors are named 'a'"),
        ([TensorProto(name="a", dims=[64, 64], data_type=1, raw_data=b"1234")], "float32 [64, 64] takes 16,384 bytes, 4 are"),
        ([TensorProto(name="a", dims=[64, 64], data_type=1, float_data=[1.0])], "a: its values do not fill its shape"),
        ([TensorProto(name="a", dims=[-4, -4], data_type=1)], "a: type 1, shape [-4, -4]"),
        ([TensorProto(name="a", dims=[4], data_type=99)], "a: type 99, shape [4]"),
    ],
)
def test_ranges_that_cannot_be(tmp_path, tensors, line):
    (tmp_path.parent / "model.onnx.data").write_bytes(bytes(4096))
    assert line in refusal(write(tmp_path, [quantized_linear("a")], tensors, data=CODES.tobytes() + OTHER.tobytes()))


def test_a_data_file_cut_off(tmp_path):
    path = write(tmp_path, [quantized_linear()], [external("w", CODES, 0)], data=CODES.tobytes()[:-1])
    want = "model.onnx.data: w: 2,048 bytes from byte 0 leave the file's 2,047; export or download it again"
    assert refusal(path).endswith(want)


def test_an_onnx_file_cut_off_or_of_another_kind(tmp_path):
    path = write(tmp_path, [quantized_linear()], [inline("w", CODES), inline("v", OTHER)])
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith(f"{path}: is ")
    for other in (b"{}", b"\x80\x00" * 99, pte().read_bytes()[:5000]):
        path.write_bytes(other)
        assert refusal(path).startswith(f"{path}: is not an ONNX model")
    assert "is not an ONNX model, or one without a node" in refusal(write(tmp_path, [], [inline("w", CODES)]))


def test_an_onnx_file_with_bytes_changed_at_random_is_audited_or_refused(tmp_path):
    nodes = [quantized_linear(), helper.make_node("Gather", ["f", "input_ids"], ["e"])]
    tensors = [external("w", CODES, 0), external("v", OTHER, 2048), inline("f", FLOATS[:8])]
    path, chance = write(tmp_path, nodes, tensors, data=CODES.tobytes() + OTHER.tobytes()), random.Random(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(500):
        file = bytearray(whole)
        for _ in range(chance.choice((1, 5))):
            file[chance.randrange(len(file))] = chance.choice((0, 1, 0x2E, 0x7F, 0x80, 0xFF))
        path.write_bytes(file)
        try:
            audit_artifact(path)
        except InputError:
            refused += 1
    assert 50 < refused < 500


def test_bytes_of_a_data_file_nothing_refers_to(tmp_path):
    tensors = [external("w", CODES, 0), external("v", OTHER, 1 << 16)]
    data = CODES.tobytes() + bytes((1 << 16) - 2048) + OTHER.tobytes()
    assert audit_artifact(write(tmp_path, [quantized_linear()], tensors, data=data)).clean, "aligned to 64 KiB"
    audit = audit_artifact(write(tmp_path, [quantized_linear()], tensors, data=data + bytes(70_000)))
    assert [(gap.file, gap.offset, gap.bytes) for gap in audit.unused] == [("model.onnx.data", (1 << 16) + 2048, 70_000)]
    assert not audit.clean


# --- .onnx: what is in float -----------------------------------------------------------------------------------------


def node(operator: str, inputs: list[str], output: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], f"the_{operator}", domain=domain, **attributes)


FOUND = {
    "MatMul": [node("MatMul", ["x", "f"], "y")],
    "Gemm": [node("Gemm", ["x", "f"], "y", transB=1)],
    "FusedMatMul": [node("FusedMatMul", ["x", "f"], "y", "com.microsoft", transB=1)],
    "MatMul of a transposed one": [node("Transpose", ["f"], "t"), node("MatMul", ["x", "t"], "y")],
    "MatMul of one cast and reshaped": [
        node("Cast", ["f"], "c", to=1),
        node("Reshape", ["c", "shape"], "r"),
        node("MatMul", ["x", "r"], "y"),
    ],
    "Gather by tokens": [node("Gather", ["f", "input_ids"], "e")],
    "Gather by tokens made to fit": [
        node("Cast", ["input_ids"], "i", to=6),
        node("Unsqueeze", ["i", "shape"], "u"),
        node("Gather", ["f", "u"], "e"),
    ],
    "packed attention": [node("Attention", ["x", "f"], "y", "com.microsoft", num_heads=1)],
    "MatMul in a branch": [
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            then_branch=helper.make_graph([node("MatMul", ["x", "f"], "b")], "then", [], []),
            else_branch=helper.make_graph([node("Identity", ["x"], "b")], "else", [], []),
        )
    ],
}
FINE = {
    "a cosine cache": [node("GroupQueryAttention", ["x", "", "", "", "", "", "", "f", "f"], "y", "com.microsoft")],
    "a rotary embedding": [node("RotaryEmbedding", ["x", "position_ids", "f", "f"], "y", "com.microsoft")],
    "rows of a table by position": [node("Gather", ["f", "position_ids"], "e")],
    "rows by how many tokens there are": [
        node("Shape", ["input_ids"], "n"),
        node("Range", ["zero", "n", "one"], "p"),
        node("Gather", ["f", "p"], "e"),
    ],
    "scales": [node("MatMulNBits", ["x", "w", "f"], "y", "com.microsoft", K=64, N=64, bits=4)],
    "rows of scales, turned": [
        node("Gather", ["f", "input_ids"], "s"),
        node("Transpose", ["s"], "t"),
        node("DequantizeLinear", ["w", "t"], "d"),
    ],
    "a bias": [node("Add", ["x", "f"], "y")],
    "a norm's weight": [node("Mul", ["x", "f"], "y")],
    "a matrix that is dequantized": [node("DequantizeLinear", ["w", "f"], "d"), node("MatMul", ["x", "d"], "y")],
    "Gemm's third input": [node("Gemm", ["x", "x", "f"], "y")],
}


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_weight_left_in_float_beside_quantized_ones(tmp_path, kind, dtype):
    tensors = [inline("w", CODES), inline("f", FLOATS.astype(dtype))]
    audit = audit_artifact(write(tmp_path, [quantized_linear(), *FOUND[kind]], tensors))
    assert not audit.clean
    (found,) = audit.float_matrices
    assert found.name.startswith("f (")
    assert (found.dtype, found.shape) == (np.dtype(dtype).name, (64, 64))
    plain = audit_artifact(write(tmp_path, FOUND[kind], tensors))
    assert plain.clean, "nothing is quantized in this one"
    assert plain.float_expected
    assert not audit_artifact(tmp_path / "model.onnx", float_expected=False).clean


@pytest.mark.parametrize("kind", FINE)
def test_floats_that_are_no_weights(tmp_path, kind):
    tensors = [inline("w", CODES), inline("f", FLOATS)]
    audit = audit_artifact(write(tmp_path, [quantized_linear(), *FINE[kind]], tensors), float_expected=False)
    assert audit.float_matrices == ()


def test_rows_that_are_scales_and_something_else_are_a_table(tmp_path):
    scales = [node("Gather", ["f", "input_ids"], "s"), node("DequantizeLinear", ["w", "s"], "d")]
    tensors = [inline("w", CODES), inline("f", FLOATS)]
    assert audit_artifact(write(tmp_path, scales, tensors)).clean
    assert not audit_artifact(write(tmp_path, [*scales, node("Add", ["x", "s"], "y")], tensors)).clean


def test_a_float_constant_node_and_a_bfloat16_one_are_seen(tmp_path):
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(FLOATS))
    bfloat16 = TensorProto(name="f", dims=[64, 64], data_type=TensorProto.BFLOAT16, raw_data=FLOATS.tobytes()[: 64 * 64 * 2])
    nodes = [constant, quantized_linear(), node("MatMul", ["x", "k"], "y"), node("MatMul", ["x", "f"], "z")]
    found = audit_artifact(write(tmp_path, nodes, [inline("w", CODES), bfloat16])).float_matrices
    assert [(matrix.name, matrix.dtype) for matrix in found] == [
        ("k (MatMul the_MatMul)", "float32"),
        ("f (MatMul the_MatMul)", "bfloat16"),
    ]


def test_a_name_inside_a_branch_hides_the_one_outside(tmp_path):
    """The branch's own f is a norm's weight; the float matrix f outside is used by nobody."""
    body = helper.make_graph([node("MatMul", ["x", "f"], "b")], "then", [], [], initializer=[inline("f", FLOATS[:1])])
    branch = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    audit = audit_artifact(write(tmp_path, [quantized_linear(), branch], [inline("w", CODES), inline("f", FLOATS)]))
    assert audit.float_matrices == ()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_permutation_is_no_weight_and_anything_else_is(dtype):
    def judged(values: np.ndarray) -> bool:
        stored = (
            values.astype(dtype) if dtype != "bfloat16" else (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        )
        return is_weight_matrix(dtype, values.shape, lambda: memoryview(stored.tobytes()))

    swap = np.roll(np.eye(16), 8, axis=0)
    assert not judged(swap)
    assert not judged(swap * np.where(np.arange(16) < 8, -1, 1)), "as rotary embeddings have it, one half negated"
    assert not judged(swap[None])
    assert judged(swap * 2)
    assert judged(swap + np.eye(16))
    assert judged(swap[:8]), "not square"
    assert not judged(np.ones((1, 16))), "a vector"
    assert not is_weight_matrix("int8", (16, 16), lambda: memoryview(bytes(256)))


# --- what a person and a script read ---------------------------------------------------------------------------------


def test_findings_are_listed_largest_first_and_not_without_end(tmp_path):
    tensors = [inline("w", CODES)]
    tensors += [
        inline(f"{i}{copy}", RANDOM.permutation(np.arange(300 + i, dtype=np.float32))) for i in range(10) for copy in "a"
    ]
    tensors += [TensorProto(name=t.name + "b", dims=t.dims, data_type=t.data_type, raw_data=t.raw_data) for t in tensors[1:]]
    audit = audit_artifact(write(tmp_path, [quantized_linear()], tensors))
    assert len(audit.duplicates) == 10
    lines = audit.lines()
    assert lines[1] == "twice    1.2 kB too many, 2 copies float32 [309]: 9a, 9ab"
    assert lines[-1] == "twice    and 2 more"
    assert len(lines) == 10
    assert audit.wasted_bytes == sum(4 * (300 + i) for i in range(10))


def test_a_name_cannot_write_to_the_terminal(tmp_path):
    tensors = [inline("w", CODES), inline("v\x1b[2J\n", CODES)]
    assert audit_artifact(write(tmp_path, [quantized_linear()], tensors)).lines()[1].endswith(": w, v?[2J?")


def test_an_audit_is_plain_values():
    audit = audit_artifact(pte())
    values = json.loads(json.dumps(dataclasses.asdict(audit)))
    assert set(values) == {field.name for field in dataclasses.fields(Audit)}
    assert values["payloads"][0]["file"] == pte().name
