"""Weights stored as codes and scales, or indices and tables: what a package holds, and what the interpreter makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from mlprograms import only, run, save

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.interpreter import Interpreter
from mobile_export.verify.mlprogram.program import Program

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 6, 64  # large enough for the weight file: small constants are written into the program
ZERO = {"x": torch.zeros(1, COLUMNS)}  # every weight is joined to x: that moves it, and rounds nothing


@dataclasses.dataclass(frozen=True)
class Weight:
    """How one is built, what a package holds of it, and the weight itself: the exact products, in float64."""

    build: Callable[..., Any]
    stored: dict[str, np.ndarray]
    weight: np.ndarray


def narrow(bits: int, *, signed: bool) -> Any:
    """Numpy's stand-in for a narrow dtype, as the Builder wants it."""
    return types.nptype_from_builtin(types.string_to_builtin(f"{'int' if signed else 'uint'}{bits}"))


def random_codes(bits: int, *, signed: bool = True) -> np.ndarray:
    least, most = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    values = RNG.integers(least, most, (ROWS, COLUMNS))
    values[0, :2] = least, most - 1
    return values


def random_scales(*shape: int) -> np.ndarray:
    return RNG.uniform(0.01, 0.1, shape).astype(np.float16)


def each(blocks: np.ndarray) -> np.ndarray:
    """A value of every block, for every element of the weight."""
    return blocks.repeat(ROWS // blocks.shape[0], 0).repeat(COLUMNS // blocks.shape[1], 1)


def shift_scale(bits: int, *, signed: bool, blocks: tuple[int, int]) -> Weight:
    codes, scales, kind = random_codes(bits, signed=signed), random_scales(*blocks), narrow(bits, signed=signed)
    stored = {"data": codes, "scale": scales} | ({} if signed else {"offset": RNG.integers(0, 1 << bits, blocks)})
    inputs = {name: value if name == "scale" else value.astype(kind) for name, value in stored.items()}
    shifted = codes - (0 if signed else each(stored["offset"]))
    return Weight(
        lambda **name: mb.constexpr_blockwise_shift_scale(**inputs, **name), stored, shifted * each(scales).astype(np.float64)
    )


def palette(bits: int, blocks: tuple[int, int]) -> Weight:
    indices, lut = random_codes(bits, signed=False), RNG.normal(size=(*blocks, 1 << bits, 1)).astype(np.float16)
    high, wide = ROWS // blocks[0], COLUMNS // blocks[1]
    weight = [[lut[row // high, column // wide, indices[row, column], 0] for column in range(COLUMNS)] for row in range(ROWS)]
    given = indices.astype(narrow(bits, signed=False))
    return Weight(
        lambda **name: mb.constexpr_lut_to_dense(indices=given, lut=lut, **name),
        {"indices": indices, "lut": lut},
        np.array(weight, np.float64),
    )


def scales_compressed() -> Weight:
    """coremltools may quantize the scales themselves."""
    codes, inner = random_codes(4), RNG.integers(1, 127, (ROWS, 2))

    def build(**name: str) -> Any:
        scale = mb.constexpr_blockwise_shift_scale(data=inner.astype(np.int8), scale=np.full((1, 1), 0.125, np.float16))
        return mb.constexpr_blockwise_shift_scale(data=codes.astype(narrow(4, signed=True)), scale=scale, **name)

    return Weight(build, {"data": codes}, codes * each(inner) / 8)


def affine(axis: int) -> Weight:
    """The form of iOS 16: its parameters are attributes, along one axis."""
    codes, size = random_codes(8), (ROWS, COLUMNS)[axis]
    scale, zero = RNG.uniform(0.01, 0.1, size).astype(np.float32), RNG.integers(-128, 128, size)
    inputs = {"quantized_data": codes.astype(np.int8), "zero_point": zero.astype(np.int8), "scale": scale}
    along = (slice(None), None) if axis == 0 else (None, slice(None))
    return Weight(
        lambda **name: mb.constexpr_affine_dequantize(**inputs, axis=np.int32(axis), **name),
        {"quantized_data": codes, "zero_point": zero, "scale": scale, "axis": np.array(axis)},
        (codes - zero[along]) * scale[along].astype(np.float64),
    )


def packed_palette(bits: int) -> Weight:
    """The form of iOS 16: one table, indices packed in bytes."""
    indices, lut = random_codes(bits, signed=False), RNG.normal(size=1 << bits).astype(np.float32)
    as_bits = (indices.reshape(-1, 1) >> np.arange(bits)) & 1
    packed, shape = np.packbits(as_bits.astype(np.uint8).reshape(-1), bitorder="little"), np.uint32([ROWS, COLUMNS])
    return Weight(
        lambda **name: mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=shape, **name),
        {"indices": packed, "lut": lut, "shape": shape},
        lut[indices].astype(np.float64),
    )


def half() -> Weight:
    values = RNG.normal(size=(ROWS, COLUMNS)).astype(np.float16)
    return Weight(
        lambda **name: mb.constexpr_cast(source_val=values, output_dtype="fp32", **name),
        {"source_val": values},
        values.astype(np.float64),
    )


IOS18: dict[str, Weight] = {
    f"{'' if signed else 'u'}int{bits}_{rows}x{groups}": shift_scale(bits, signed=signed, blocks=(rows, groups))
    for bits in (4, 8)
    for signed in (True, False)
    for rows, groups in ((ROWS, 1), (ROWS, 4), (2, 32), (1, 1))
}
IOS18 |= {
    f"palette{bits}_{rows}x{groups}": palette(bits, (rows, groups))
    for bits in (1, 2, 3, 4, 6, 8)
    for rows, groups in ((1, 1), (3, 1), (2, 4))
}
IOS18["scales_compressed"] = scales_compressed()
IOS16: dict[str, Weight] = {"affine_rows": affine(0), "affine_columns": affine(1), "half": half()}
IOS16 |= {f"packed{bits}": packed_palette(bits) for bits in (1, 2, 4, 6, 8)}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """All weights of one iOS in one package, an output for each."""

    def build(weights: dict[str, Weight]) -> Callable[[Any], Any]:
        def built(x: Any) -> Any:
            # x of iOS 16 is float32, the dtype of those weights
            return tuple(
                mb.concat(values=[x, weight.build(name=name)], axis=0, name=f"{name}_behind")
                for name, weight in weights.items()
            )

        return built

    folder = tmp_path_factory.mktemp("weights")
    made = {}
    for name, weights, target, dtype in (
        ("ios18", IOS18, ct.target.iOS18, types.fp16),
        ("ios16", IOS16, ct.target.iOS16, types.fp32),
    ):
        path = save(folder / f"{name}.mlpackage", build(weights), mb.TensorSpec((1, COLUMNS), dtype), target=target)
        made |= dict.fromkeys(weights, Program.open(path))
    return made


@pytest.mark.parametrize("name", IOS18 | IOS16)
def test_what_is_stored_is_read_back(programs: dict[str, Program], name: str) -> None:
    read, expected = programs[name].codes("main", name), (IOS18 | IOS16)[name].stored
    assert read.keys() == expected.keys()
    for parameter, values in expected.items():
        assert np.array_equal(read[parameter], values), parameter
        if values.dtype == np.float16:
            assert read[parameter].dtype == torch.float16


@pytest.mark.parametrize("name", IOS18 | IOS16)
def test_the_weight_is_what_the_formula_gives(programs: dict[str, Program], name: str) -> None:
    alone, weight = only(programs[name], f"{name}_behind"), (IOS18 | IOS16)[name].weight
    (exact,) = run(alone, ZERO).values()
    assert np.array_equal(exact[1:], weight.astype(np.float32))
    if name in IOS18:
        (rounded,) = run(alone, ZERO, "float16").values()
        assert np.array_equal(rounded[1:], weight.astype(np.float16))


def test_a_shared_weight_is_expanded_and_held_once(programs: dict[str, Program]) -> None:
    """In all functions: coremltools lets equal constants name one place of the weight file."""
    alone = only(programs["int4_6x4"], "int4_6x4_behind")
    twice = dataclasses.replace(alone, functions=dict.fromkeys(("prefill", "decode"), alone.functions["main"]))
    interpreter = Interpreter(twice)
    for function in twice.functions:
        interpreter.run(function, ZERO)
    assert len(interpreter._weights._held) == 1


def test_constants_are_read_as_they_are_stored(tmp_path: Path) -> None:
    values = RNG.normal(size=(ROWS, COLUMNS)).astype(np.float16)
    spec = mb.TensorSpec((ROWS, COLUMNS), types.fp16)
    program = Program.open(
        save(tmp_path / "table.mlpackage", lambda x: mb.add(x=x, y=mb.const(val=values, name="table")), spec)
    )
    table = program.constant("main", "table")
    assert table.dtype == torch.float16
    assert np.array_equal(table, values)
    assert list(program.function("main").constants) == ["table"]
    assert list(program.function("main").compressed) == []
    with pytest.raises(InputError, match=r"^table.mlpackage: main: no constant chair; there are 1$"):
        program.constant("main", "chair")
    with pytest.raises(InputError, match=r"^table.mlpackage: main: no compressed constant table; there are 0$"):
        program.codes("main", "table")
    with pytest.raises(InputError, match=r"^table.mlpackage: no function decode; it has main$"):
        program.constant("decode", "table")
