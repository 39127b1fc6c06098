"""Weights stored as codes and scales, or indices and tables: what a package holds, and what the interpreter makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from mlprograms import run, save

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.interpreter import Interpreter
from mobile_export.verify.mlprogram.program import Program

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 6, 64  # large enough for the weight file: small constants are written into the program


def stored(bits: int, *, signed: bool) -> Any:
    """Numpy's stand-in for a narrow dtype, as the Builder wants it."""
    return types.nptype_from_builtin(types.string_to_builtin(f"{'int' if signed else 'uint'}{bits}"))


def codes(bits: int, *, signed: bool = True) -> np.ndarray:
    least, most = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    values = RNG.integers(least, most, (ROWS, COLUMNS))
    values[0, :2] = least, most - 1
    return values


def scales(*shape: int) -> np.ndarray:
    return RNG.uniform(0.01, 0.1, shape).astype(np.float16)


def opened(path: Path, build: Any, target: Any = ct.target.iOS18) -> Program:
    spec = mb.TensorSpec((ROWS, COLUMNS), types.fp16 if target == ct.target.iOS18 else types.fp32)
    return Program.open(save(path / "weights.mlpackage", build, spec, target=target))


def weight_of(program: Program, rounding: Any = "float32") -> torch.Tensor:
    """The weight, which the program adds to x."""
    (got,) = run(program, {"x": torch.zeros(ROWS, COLUMNS)}, rounding).values()
    return got


@pytest.mark.parametrize(("bits", "signed"), [(4, True), (4, False), (8, True), (8, False)])
@pytest.mark.parametrize(("rows", "groups"), [(ROWS, 1), (ROWS, 4), (2, 32), (1, 1)])
def test_codes_and_scales(bits: int, signed: bool, rows: int, groups: int, tmp_path: Path) -> None:
    data, scale = codes(bits, signed=signed), scales(rows, groups)
    offset = None if signed else RNG.integers(0, 1 << bits, (rows, groups))
    kind = stored(bits, signed=signed)

    def build(x: Any) -> Any:
        inputs = {"data": data.astype(kind), "scale": scale} | ({} if offset is None else {"offset": offset.astype(kind)})
        return mb.add(x=x, y=mb.constexpr_blockwise_shift_scale(**inputs, name="weight"))

    program = opened(tmp_path, build)
    read = program.codes("main", "weight")
    assert read["data"].dtype == (torch.int8 if signed else torch.uint8)
    assert np.array_equal(read["data"], data)
    assert read["scale"].dtype == torch.float16
    assert np.array_equal(read["scale"], scale)
    shifted = data - (0 if offset is None else each(offset))
    assert np.array_equal(weight_of(program), shifted.astype(np.float32) * each(scale).astype(np.float32))
    assert np.array_equal(weight_of(program, "float16"), (shifted * each(scale).astype(np.float64)).astype(np.float16))


def each(blocks: np.ndarray) -> np.ndarray:
    """A value of every block, for every element of the weight."""
    repeats = ROWS // blocks.shape[0], COLUMNS // blocks.shape[1]
    return blocks.repeat(repeats[0], 0).repeat(repeats[1], 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("groups", [(1, 1), (3, 1), (2, 4)])
def test_palettes(bits: int, groups: tuple[int, int], tmp_path: Path) -> None:
    indices = codes(bits, signed=False)
    lut = RNG.normal(size=(*groups, 1 << bits, 1)).astype(np.float16)

    def build(x: Any) -> Any:
        kind = stored(bits, signed=False)
        return mb.add(x=x, y=mb.constexpr_lut_to_dense(indices=indices.astype(kind), lut=lut, name="weight"))

    program = opened(tmp_path, build)
    read = program.codes("main", "weight")
    assert np.array_equal(read["indices"], indices)
    assert np.array_equal(read["lut"], lut)
    wide = ROWS // groups[0], COLUMNS // groups[1]
    expected = [[lut[i // wide[0], j // wide[1], indices[i, j], 0] for j in range(COLUMNS)] for i in range(ROWS)]
    assert np.array_equal(weight_of(program), np.array(expected, np.float32))


def test_a_compressed_scale(tmp_path: Path) -> None:
    """coremltools may quantize the scales themselves."""
    data, inner = codes(4), RNG.integers(1, 127, (ROWS, 2))

    def build(x: Any) -> Any:
        scale = mb.constexpr_blockwise_shift_scale(data=inner.astype(np.int8), scale=scales(1, 1) * 0 + np.float16(0.125))
        return mb.add(x=x, y=mb.constexpr_blockwise_shift_scale(data=data.astype(stored(4, signed=True)), scale=scale))

    assert np.array_equal(weight_of(opened(tmp_path, build)), (data * each(inner) / 8).astype(np.float32))


@pytest.mark.parametrize("axis", [0, 1])
def test_ios16_affine(axis: int, tmp_path: Path) -> None:
    data, size = codes(8), (ROWS, COLUMNS)[axis]
    scale, zero = RNG.uniform(0.01, 0.1, size).astype(np.float32), RNG.integers(-128, 128, size).astype(np.int8)

    def build(x: Any) -> Any:
        inputs = {"quantized_data": data.astype(np.int8), "zero_point": zero, "scale": scale, "axis": np.int32(axis)}
        return mb.add(x=x, y=mb.constexpr_affine_dequantize(**inputs))

    along = (slice(None), None) if axis == 0 else (None, slice(None))
    expected = (data - zero.astype(int)[along]).astype(np.float32) * scale[along]
    assert np.array_equal(weight_of(opened(tmp_path, build, ct.target.iOS16)), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_ios16_palette(bits: int, tmp_path: Path) -> None:
    indices, lut = codes(bits, signed=False), RNG.normal(size=1 << bits).astype(np.float32)
    as_bits = (indices.reshape(-1, 1) >> np.arange(bits)) & 1
    packed = np.packbits(as_bits.astype(np.uint8).reshape(-1), bitorder="little")

    def build(x: Any) -> Any:
        return mb.add(x=x, y=mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array([ROWS, COLUMNS], np.uint32)))

    assert np.array_equal(weight_of(opened(tmp_path, build, ct.target.iOS16)), lut[indices])


def test_ios16_cast(tmp_path: Path) -> None:
    values = RNG.normal(size=(ROWS, COLUMNS)).astype(np.float16)

    def build(x: Any) -> Any:
        return mb.add(x=x, y=mb.constexpr_cast(source_val=values, output_dtype="fp32"))

    assert np.array_equal(weight_of(opened(tmp_path, build, ct.target.iOS16)), values.astype(np.float32))


def test_a_shared_weight_is_expanded_and_held_once(tmp_path: Path) -> None:
    data, scale = codes(4), scales(ROWS, 2)

    def build(x: Any) -> Any:
        twice = [
            mb.constexpr_blockwise_shift_scale(data=data.astype(stored(4, signed=True)), scale=scale, name=f"weight_{at}")
            for at in range(2)
        ]
        return mb.add(x=mb.add(x=x, y=twice[0]), y=twice[1])

    program = opened(tmp_path, build)
    one_place(program)
    interpreter = Interpreter(program)
    (got,) = interpreter.run("main", {"x": torch.zeros(ROWS, COLUMNS)}).values()
    assert np.array_equal(got, 2 * data.astype(np.float32) * each(scale).astype(np.float32))
    assert len(interpreter._weights._held) == 1


def one_place(program: Program) -> None:
    """Let both weights name the first one's places, as coremltools writes them after finding that they are equal."""
    first, second = program.function("main").compressed.values()
    second.inputs.update(first.inputs)  # type: ignore[attr-defined]


def test_constants_are_read_as_they_are_stored(tmp_path: Path) -> None:
    values = RNG.normal(size=(ROWS, COLUMNS)).astype(np.float16)
    program = opened(tmp_path, lambda x: mb.add(x=x, y=mb.const(val=values, name="table")))
    table = program.constant("main", "table")
    assert table.dtype == torch.float16
    assert np.array_equal(table, values)
    assert list(program.function("main").constants) == ["table"]
    assert list(program.function("main").compressed) == []
    with pytest.raises(InputError, match=r"^weights.mlpackage: main: no constant chair; there are 1$"):
        program.constant("main", "chair")
    with pytest.raises(InputError, match=r"^weights.mlpackage: main: no compressed constant table; there are 0$"):
        program.codes("main", "table")
    with pytest.raises(InputError, match=r"^weights.mlpackage: no function decode; it has main$"):
        program.constant("decode", "table")
