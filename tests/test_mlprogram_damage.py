"""Packages that are not what they should be: one line that says where and what, never a crash, never a wrong answer."""

from __future__ import annotations

import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from mlprograms import save

from mobile_export.errors import EXIT_INPUT, InputError
from mobile_export.verify.mlprogram.interpreter import Interpreter
from mobile_export.verify.mlprogram.package import Package, read_package
from mobile_export.verify.mlprogram.program import Program

MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
TABLE = np.linspace(-1, 1, 256, dtype=np.float16).reshape(8, 32)
CODES = (np.arange(16 * 32).reshape(16, 32) % 16 - 8).astype(types.nptype_from_builtin(types.int4))
SCALES = np.linspace(0.5, 1, 16, dtype=np.float16).reshape(16, 1)
FEEDS = {"ids": torch.tensor([[1, 5]])}
LOGITS = torch.from_numpy(TABLE[[1, 5]].astype(np.float32)[None]) @ torch.from_numpy(
    CODES.astype(np.float32) * SCALES.astype(np.float32)
).T  # fmt: skip


def decoder(ids: Any, kept: Any) -> Any:
    """A gather, a compressed linear and a state: what a decoder is made of."""
    weight = mb.constexpr_blockwise_shift_scale(data=CODES, scale=SCALES, name="head")
    logits = mb.linear(x=mb.gather(x=TABLE, indices=ids, axis=0, name="embedded"), weight=weight, name="logits")
    sums = mb.slice_update(x=mb.read_state(input=kept), update=mb.reduce_sum(x=logits, axes=[2]), begin=[0, 0], end=[1, 2])
    mb.coreml_update_state(state=kept, value=sums)
    return mb.identity(x=logits, name="out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    specs = mb.TensorSpec((1, 2), types.int32), mb.StateTensorSpec((1, 4), types.fp16)
    return save(tmp_path_factory.mktemp("whole") / "decoder.mlpackage", decoder, *specs)


@pytest.fixture
def package(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "decoder.mlpackage"))


def answer(program: Program) -> dict[str, torch.Tensor]:
    interpreter = Interpreter(program)
    return interpreter.run("main", FEEDS, interpreter.new_state("main"))


def test_the_whole_package_runs(package: Path) -> None:
    torch.testing.assert_close(answer(Program.open(package))["out"], LOGITS)


def refused(package: Path) -> str:
    """The one line a package is refused with, when it is opened or run."""
    with pytest.raises(InputError) as caught:
        answer(Program.open(package))
    assert caught.value.exit_code == EXIT_INPUT
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


# --- the folder ------------------------------------------------------------------------------------------------------


def edit_manifest(package: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    change(manifest)
    (package / "Manifest.json").write_text(json.dumps(manifest))


def item(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in manifest["itemInfoEntries"].values() if entry["name"] == name)


def unlist_weights(manifest: dict[str, Any]) -> None:
    root = manifest["rootModelIdentifier"]
    manifest["itemInfoEntries"] = {root: manifest["itemInfoEntries"][root]}


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder; name an .mlpackage folder"),
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "decoder.mlpackage/Manifest.json: no such file"),
    "no JSON": (lambda p: (p / "Manifest.json").write_text("{"), "Manifest.json: is not JSON"),
    "no root": (lambda p: edit_manifest(p, lambda m: m.pop("rootModelIdentifier")), "Manifest.json: names no model"),
    "root nowhere": (lambda p: edit_manifest(p, lambda m: m.update(rootModelIdentifier="x")), "Manifest.json: names no model"),
    "item nowhere": (
        lambda p: edit_manifest(p, lambda m: item(m, "model.mlmodel").update(path="com.apple.CoreML/other.mlmodel")),
        "Manifest.json lists Data/com.apple.CoreML/other.mlmodel, which is not there",
    ),
    "item outside": (
        lambda p: edit_manifest(p, lambda m: item(m, "weights").update(path="../../secret")),
        "leads out of the package",
    ),
    "item without path": (lambda p: edit_manifest(p, lambda m: item(m, "weights").pop("path")), "has no path"),
    "weights not listed": (
        lambda p: edit_manifest(p, unlist_weights),
        "is in @model_path/weights/weight.bin, which the package does not hold",
    ),
    "no model": (lambda p: (p / MODEL).unlink(), "lists Data/com.apple.CoreML/model.mlmodel, which is not there"),
    "no weights": (lambda p: (p / WEIGHTS).unlink(), "is in @model_path/weights/weight.bin, which the package does not hold"),
    "weights renamed": (
        lambda p: (p / WEIGHTS).rename((p / WEIGHTS).with_name("weights.bin")),
        "is in @model_path/weights/weight.bin, which the package does not hold",
    ),
    "empty model": (lambda p: (p / MODEL).write_bytes(b""), "model.mlmodel: is empty"),
    "empty weights": (lambda p: (p / WEIGHTS).write_bytes(b""), "weight.bin: is empty"),
    "a folder as model": (lambda p: ((p / MODEL).unlink(), (p / MODEL).mkdir()), "model.mlmodel: is not a file"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_package(package: Path, name: str) -> None:
    damage, said = FOLDERS[name]
    damage(package)
    assert said in refused(package)


def test_a_file_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "x.mlpackage").write_bytes(b"")
    assert "x.mlpackage: is a file, not a folder" in refused(tmp_path / "x.mlpackage")


# --- the weight file -------------------------------------------------------------------------------------------------


def head_offset(package: Path) -> int:
    """Where the entry of the codes begins."""
    value = Program.open(package).function("main").compressed["head"].inputs["data"][0]
    assert not isinstance(value, str)
    return value.offset


def overwrite(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def cut(package: Path, size: int) -> None:
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:size])


WEIGHT_FILES: dict[str, tuple[Callable[[Path, int], Any], str]] = {
    "no header": (lambda p, at: cut(p, 63), "weight.bin: is cut off after 63 bytes"),
    "another version": (lambda p, at: overwrite(p / WEIGHTS, 4, b"\1"), "is no weight file of version 2 (found 1)"),
    "no entry": (lambda p, at: cut(p, at + 10), "is cut off: no entry at byte"),
    "half of its data": (lambda p, at: cut(p, (p / WEIGHTS).stat().st_size - 16), "is cut off: 32 bytes at byte"),
    "no sentinel": (lambda p, at: overwrite(p / WEIGHTS, at, b"\0"), "weight.bin: has no entry at byte"),
    "unknown dtype": (lambda p, at: overwrite(p / WEIGHTS, at + 4, b"\x63"), "weight.bin: has no entry at byte"),
    "another dtype": (lambda p, at: overwrite(p / WEIGHTS, at + 4, b"\4"), "256 bytes, and finds 256 bytes of int8"),
    "another size": (
        lambda p, at: overwrite(p / WEIGHTS, at + 8, struct.pack("<Q", 255)),
        "is int4[16, 32], 256 bytes, and finds 255 bytes of int4",
    ),
    "huge size": (lambda p, at: overwrite(p / WEIGHTS, at + 8, b"\xff" * 8), "is cut off: 18,446,744,073,709,551,615 bytes"),
    "data first": (lambda p, at: overwrite(p / WEIGHTS, at + 16, struct.pack("<Q", 8)), "is cut off: 256 bytes at byte 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_a_damaged_weight_file(package: Path, name: str) -> None:
    damage, said = WEIGHT_FILES[name]
    damage(package, head_offset(package))
    assert said in refused(package)


# --- the program -----------------------------------------------------------------------------------------------------


def edited(package: Path, change: Callable[[Any], Any]) -> Path:
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    change(model)
    (package / MODEL).write_bytes(model.SerializeToString())
    return package


def operation(model: Any, kind: str) -> Any:
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    return next(found for found in block.operations if found.type == kind)


def blob(model: Any, parameter: str = "data") -> Any:
    return operation(model, "constexpr_blockwise_shift_scale").inputs[parameter].arguments[0].value.blobFileValue


def bind(model: Any, kind: str, parameter: str, name: str) -> None:
    operation(model, kind).inputs[parameter].arguments.add().name = name


def const_operation(model: Any, of: str) -> Any:
    """The constant an update of the state takes."""
    name = operation(model, "slice_update").inputs[of].arguments[0].name
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    return next(found for found in block.operations if found.outputs and found.outputs[0].name == name)


def const(model: Any, of: str) -> Any:
    return const_operation(model, of).attributes["val"].immediateValue.tensor


def state_type(model: Any) -> Any:
    return model.mlProgram.functions["main"].inputs[1].type.stateType.wrappedType.tensorType


def resize(declared: Any, *sizes: int) -> None:
    for dimension, size in zip(declared.type.tensorType.dimensions, sizes, strict=True):
        dimension.constant.size = size


def neural_network(model: Any) -> None:
    model.neuralNetwork.layers.add()


def repeat_name(model: Any) -> None:
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    block.operations.append(operation(model, "gather"))


PROGRAMS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "neural network": (neural_network, "holds a neuralNetwork, not an ML program; convert it with convert_to='mlprogram'"),
    "old version": (lambda m: setattr(m, "specificationVersion", 5), "has specification version 5; export it for iOS 15 to 18"),
    "new version": (lambda m: setattr(m, "specificationVersion", 10), "has specification version 10"),
    "no function": (lambda m: m.mlProgram.functions.clear(), "describes ['main'], holds []"),
    "unknown operator set": (
        lambda m: setattr(m.mlProgram.functions["main"], "opset", "CoreML99"),
        "main: is written in the operator set 'CoreML99'",
    ),
    "no body": (lambda m: setattr(m.mlProgram.functions["main"], "opset", "CoreML7"), "main: has no body for CoreML7"),
    "offset outside": (lambda m: setattr(blob(m), "offset", 1 << 40), "no entry at byte 1,099,511,627,776"),
    "offset within data": (lambda m: setattr(blob(m), "offset", blob(m).offset + 64), "weight.bin: has no entry at byte"),
    "offset of another": (lambda m: setattr(blob(m), "offset", blob(m, "scale").offset), "is int4[16, 32], 256 bytes, and"),
    "another file": (lambda m: setattr(blob(m), "fileName", "@model_path/x.bin"), "is in @model_path/x.bin, which the package"),
    "unknown operator": (
        lambda m: setattr(operation(m, "linear"), "type", "lstm"),
        "decoder.mlpackage: main: lstm logits: is an operator this interpreter does not know",
    ),
    "unknown input": (
        lambda m: bind(m, "linear", "activation", "embedded"),
        "main: linear logits: has the input activation, which this interpreter does not know",
    ),
    "missing input": (lambda m: operation(m, "linear").inputs.pop("weight"), "main: linear logits: lacks its input weight"),
    "two values": (lambda m: bind(m, "linear", "x", "embedded"), "main: linear logits: is given several values for x"),
    "nothing for an input": (
        lambda m: operation(m, "linear").inputs["x"].ClearField("arguments"),
        "main: linear logits: x is given no value",
    ),
    "a value from nowhere": (
        lambda m: setattr(operation(m, "linear").inputs["x"].arguments[0], "name", "thin_air"),
        "main: linear logits: x is thin_air, which nothing before it computes",
    ),
    "a state as a value": (
        lambda m: setattr(operation(m, "linear").inputs["x"].arguments[0], "name", "kept"),
        "main: linear logits: x is a state",
    ),
    "a value as a state": (
        lambda m: setattr(operation(m, "read_state").inputs["input"].arguments[0], "name", "logits"),
        "input is no state",
    ),
    "a name twice": (repeat_name, "main: gather embedded: gives a value whose name is taken"),
    "an output from nowhere": (
        lambda m: m.mlProgram.functions["main"].block_specializations["CoreML8"].outputs.append("thin_air"),
        "main: gives thin_air, which no operation computes",
    ),
    "another description": (
        lambda m: setattr(m.description.input[0], "name", "tokens"),
        "main: describes the inputs ['tokens'], has ['ids']",
    ),
    "another described shape": (
        lambda m: m.description.input[0].type.multiArrayType.shape.append(7),
        "main: ids: is int32[1, 2] and described by the ranges ((1, 1), (2, 2), (7, 7))",
    ),
    "a wrong shape": (
        lambda m: resize(operation(m, "linear").outputs[0], 1, 2, 17),
        "main: linear logits: gives float32[1, 2, 16], declared as float16[1, 2, 17]",
    ),
    "a wrong dtype": (
        lambda m: setattr(operation(m, "linear").outputs[0].type.tensorType, "dataType", 11),
        "main: linear logits: gives float16, declared as float32[1, 2, 16]",
    ),
    "an unknown dtype": (
        lambda m: setattr(operation(m, "linear").outputs[0].type.tensorType, "dataType", 12),
        "main: logits: has a dtype we do not know (number 12)",
    ),
    "a hostile shape": (lambda m: resize(operation(m, "linear").outputs[0], 1 << 20, 1 << 20, 2), "main: logits: would have"),
    "huge and empty": (lambda m: resize(operation(m, "linear").outputs[0], 0, 1 << 62, 1), "main: logits: would have"),
    "a wrong state": (
        lambda m: resize(operation(m, "read_state").outputs[0], 1, 5),
        "moves float16[1, 5], the state is float16[1, 4]",
    ),
    "a wrong weight": (
        lambda m: resize(operation(m, "constexpr_blockwise_shift_scale").outputs[0], 32, 16),
        "main: constexpr_blockwise_shift_scale head: gives the shape [16, 32], declared as float16[32, 16]",
    ),
    "a text input": (
        lambda m: setattr(m.mlProgram.functions["main"].inputs[0].type.tensorType, "dataType", 2),
        "main: ids: is text that is no constant",
    ),
    "a text result": (
        lambda m: setattr(operation(m, "linear").outputs[0].type.tensorType, "dataType", 2),
        "main: logits: is text that is no constant",
    ),
    "a state without a shape": (
        lambda m: state_type(m).dimensions[0].unknown.SetInParent(),
        "main: kept: is a state of unknown shape (float16[?, 4])",
    ),
    "a list": (
        lambda m: operation(m, "linear").outputs[0].type.listType.SetInParent(),
        "main: logits: has the type listType, where a tensor is expected",
    ),
    "numbers too few": (lambda m: const(m, "begin").ints.values.pop(), "holds 1 values, int32[2] has 2"),
    "bytes too few": (
        lambda m: setattr(const(m, "begin").bytes, "values", b"abc"),
        "holds 3 bytes, int32[2] takes 8",
    ),
    "other numbers": (lambda m: const(m, "begin").floats.values.append(1.0), "is int32[2] and holds floats"),
    "a const of another type": (
        lambda m: resize(const_operation(m, "begin").outputs[0], 3),
        "is int32[2], declared as int32[3]",
    ),
    "a rank": (
        lambda m: setattr(operation(m, "linear").outputs[0].type.tensorType, "rank", 2),
        "main: logits: is said to have 2 dimensions and lists 3",
    ),
    "a branch": (lambda m: operation(m, "linear").blocks.add(), "main: linear logits: has blocks of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_damaged_program(package: Path, name: str) -> None:
    change, said = PROGRAMS[name]
    assert said in refused(edited(package, change))


@pytest.mark.parametrize("size", [1, 100, 2000])
def test_a_program_cut_off(package: Path, size: int) -> None:
    (package / MODEL).write_bytes((package / MODEL).read_bytes()[:-size])
    assert "decoder.mlpackage: its model is no Core ML protobuf, or cut off; export or copy it again" in refused(package)


def test_text_is_no_program(package: Path) -> None:
    (package / MODEL).write_text("hello, world\n" * 100)
    assert "its model is no Core ML protobuf" in refused(package)


def column(n: Any) -> Any:
    return mb.expand_dims(x=mb.fill(shape=n), axes=[1])


HUGE: dict[str, Callable[..., Any]] = {
    "tile": lambda n: mb.tile(x=mb.fill(shape=np.int32([1, 1]), value=1.0), reps=mb.concat(values=[n, n], axis=0)),
    "fill": lambda n: mb.fill(shape=mb.concat(values=[n, n], axis=0), value=1.0),
    "range_1d": lambda n: mb.range_1d(start=np.int32(0), end=mb.mul(x=mb.squeeze(x=n), y=np.int32(1 << 14)), step=np.int32(1)),
    "add": lambda n: mb.add(x=mb.fill(shape=n), y=column(n)),
    "matmul": lambda n: mb.matmul(
        x=mb.expand_dims(x=mb.fill(shape=n), axes=[1]), y=mb.expand_dims(x=mb.fill(shape=n), axes=[0])
    ),
    "one_hot": lambda n: mb.one_hot(indices=mb.fill(shape=n, value=np.int32(0)), one_hot_vector_size=mb.squeeze(x=n)),
    "gather": lambda n: mb.gather(
        x=mb.expand_dims(x=mb.fill(shape=n), axes=[0]), indices=mb.fill(shape=n, value=np.int32(0)), axis=0
    ),
    "pad": lambda n: mb.pad(x=mb.fill(shape=np.int32([1, 1])), pad=mb.concat(values=[n, n, n, n], axis=0)),
}


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(n: Any) -> Any:
        return tuple(mb.cast(x=mb.reduce_sum(x=case(n)), dtype="fp32", name=name) for name, case in HUGE.items())

    return save(tmp_path_factory.mktemp("huge") / "huge.mlpackage", build, mb.TensorSpec((1,), types.int32))


@pytest.mark.parametrize("name", HUGE)
def test_a_hostile_size_is_refused_before_it_is_made(huge: Path, name: str) -> None:
    from mlprograms import only

    program = only(Program.open(huge), name)
    assert Interpreter(program).run("main", {"n": torch.tensor([3])})[name].numel() == 1
    before = peak_mib()
    with pytest.raises(InputError, match=r"its result would have \[.*\] elements\)") as caught:
        Interpreter(program).run("main", {"n": torch.tensor([100_000])})
    assert str(caught.value).startswith(f"huge.mlpackage: main: {name} ")
    assert peak_mib() - before < 100


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- any byte -------------------------------------------------------------------------------------------------------


def damaged(content: bytes, draw: Any) -> bytes:
    """Some bytes changed, removed or doubled."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed) - 1))
        kind = draw(st.sampled_from(["set", "set", "set", "cut", "double"]))
        if kind == "set":
            changed[at] = draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])))
        elif kind == "cut":
            del changed[at : at + draw(st.integers(1, 64))]
        else:
            changed[at:at] = changed[at : at + draw(st.integers(1, 64))]
        if not changed:
            return b"\0"
    return bytes(changed)


def test_damage_anywhere_is_an_error_or_an_answer_of_the_declared_type(whole: Path) -> None:
    package = read_package(whole)
    model, (name,) = bytes(package.specification), package.files
    weights = bytes(package.files[name])
    outcomes: dict[str, int] = {"refused": 0, "answered": 0}
    lines: set[int] = set()
    before = peak_mib()

    @settings(max_examples=1500)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        in_model = data.draw(st.integers(0, 4)) > 0
        changed = damaged(model if in_model else weights, data.draw)
        files = {name: memoryview(weights if in_model else changed)}
        try:
            got = answer(Program.of(Package("damaged", changed if in_model else model, files)))
        except InputError as error:
            outcomes["refused"] += 1
            lines.add(str(error).count("\n"))
        else:
            outcomes["answered"] += 1
            assert all(isinstance(value, torch.Tensor) for value in got.values())

    check()
    assert min(outcomes.values()) > 100, outcomes
    assert lines == {0}
    assert peak_mib() - before < 2500
