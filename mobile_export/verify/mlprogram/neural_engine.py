"""What is known to keep a program off the Neural Engine, or to slow it down there: warnings, each with its cure.

General knowledge, from Apple's articles on transformers for the Neural Engine and from those who shipped models on it.
None of it is a measurement of this package: only Core ML itself, on a device, says where an operation runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from mobile_export.verify.mlprogram.findings import Finding
from mobile_export.verify.mlprogram.program import Function, Operation, Program
from mobile_export.verify.mlprogram.values import Constant, TensorType

LARGEST_DIMENSION = 16384  # of one tensor on the Neural Engine, as those report who split their vocabulary
NARROW = {"int4", "uint4", "int8", "uint8"}


@dataclass(frozen=True)
class Pattern:
    """Something to look for in a function."""

    noun: str
    what: str
    cure: str
    find: Callable[[Function], Iterator[str]]  # names of what is found


def lint(program: Program) -> list[Finding]:
    """Everything found, by function and pattern, counted."""
    findings = []
    for function in program.functions.values():
        for pattern in PATTERNS:
            if count := len(set(pattern.find(function))):
                findings.append(
                    Finding("warning", "neural engine", function.name, count, pattern.noun, pattern.what, pattern.cure)
                )
    return findings


def ranged_inputs(function: Function) -> Iterator[str]:
    """Inputs without a fixed shape."""
    return (given.name for given in function.inputs if None in given.type.shape)


def repeating_tiles(function: Function) -> Iterator[str]:
    """Copies of keys or values for the query heads that share them: rank 4 or more, not repeated along the last two axes."""
    for operation in _of(function, "tile"):
        repeats = _integers(function, operation, "reps")
        if repeats and len(repeats) >= 4 and max(repeats[:-2]) > 1 and max(repeats[-2:]) == 1:
            yield operation.name


def per_block_weights(function: Function) -> Iterator[str]:
    """Compressed weights with more than one scale along their inputs."""
    for operation in _of(function, "constexpr_blockwise_shift_scale"):
        data, scale = (_type(function, operation, name) for name in ("data", "scale"))
        if data.dtype in NARROW and len(scale.sizes) > 1 and max(scale.sizes[1:]) > 1:
            yield operation.name


def wide_heads(function: Function) -> Iterator[str]:
    """Products whose result is wider than a tensor of the Neural Engine."""
    for operation in _of(function, "linear", "matmul", "conv"):
        axis = 1 if operation.type == "conv" else -1
        shape = operation.outputs[0][1].shape
        if shape and (shape[axis] or 0) > LARGEST_DIMENSION:
            yield operation.name


def compressed_tables(function: Function) -> Iterator[str]:
    """Lookups in a table that is stored as codes."""
    for operation in _of(function, "gather", "gather_along_axis", "gather_nd"):
        if str(operation.inputs["x"][0]) in function.compressed:
            yield operation.name


def joined_rotations(function: Function) -> Iterator[str]:
    """Rotary positions that swap the halves of a head by joining one, negated, with the other."""
    for operation in _of(function, "concat"):
        parts = [function.producers.get(str(value)) for value in operation.inputs["values"]]
        if len(parts) == 2 and any(part is not None and _negates(function, part) for part in parts):
            yield operation.name


def moving_slices(function: Function) -> Iterator[str]:
    """Slices whose begin or end is computed from an input."""
    for operation in _of(function, "slice_by_index", "slice_update", "slice_by_size"):
        ends = [name for name in ("begin", "end", "size") if name in operation.inputs]
        if any(_integers(function, operation, name) is None for name in ends):
            yield operation.name


def rank_3_linears(function: Function) -> Iterator[str]:
    """Linear layers over [batch, tokens, features]."""
    for operation in _of(function, "linear"):
        if len(_type(function, operation, "x").shape) <= 3:
            yield operation.name


PATTERNS = (
    Pattern(
        "input",
        "may vary in length: the Neural Engine runs fixed shapes",
        "export with --layout functions, one shape for prefill and one for decode",
        ranged_inputs,
    ),
    Pattern(
        "tile",
        "copying keys or values for every query head that shares them: memory traffic for nothing",
        "group the queries of a head into rows of one product instead",
        repeating_tiles,
    ),
    Pattern(
        "weight",
        "quantized in blocks of inputs, which suits the GPU",
        "for the Neural Engine use one scale for each output (int8), or palettes",
        per_block_weights,
    ),
    Pattern(
        "product",
        f"wider than {LARGEST_DIMENSION:,}, like a head over a whole vocabulary: it runs on GPU or CPU",
        f"split the head into parts of at most {LARGEST_DIMENSION:,}",
        wide_heads,
    ),
    Pattern(
        "lookup",
        "in a compressed table: it may be expanded whole, or run on the CPU",
        "leave the table in float16, or look tokens up outside the model",
        compressed_tables,
    ),
    Pattern(
        "rotation",
        "swapping the halves of a head by a join: two copies for every head and token",
        "multiply by a fixed matrix that swaps them, or rotate the halves apart",
        joined_rotations,
    ),
    Pattern(
        "slice",
        "whose place depends on an input: Core ML may leave the Neural Engine for it",
        "write the cache by a mask over all its rows, at a fixed shape",
        moving_slices,
    ),
    Pattern(
        "linear layer",
        "of rank 3 or less: the Neural Engine prefers channels first",
        "write it as a convolution of size 1 over [1, features, 1, tokens]",
        rank_3_linears,
    ),
)


def _of(function: Function, *types: str) -> Iterator[Operation]:
    return (operation for operation in function.operations if operation.type in types)


def _type(function: Function, operation: Operation, parameter: str) -> TensorType:
    value = operation.inputs[parameter][0]
    return value.type if isinstance(value, Constant) else function.types[value]


def _value(function: Function, operation: Operation, parameter: str) -> Tensor | None:
    """A small constant's value; None if it is computed, or in the weight file."""
    value: str | Constant | None = operation.inputs[parameter][0]
    value = function.constants.get(value) if isinstance(value, str) else value
    return value.immediate if value is not None and isinstance(value.immediate, Tensor) else None


def _integers(function: Function, operation: Operation, parameter: str) -> list[int] | None:
    value = _value(function, operation, parameter)
    return None if value is None else [int(number) for number in value.reshape(-1).tolist()]


def _negates(function: Function, operation: Operation) -> bool:
    if operation.type == "mul":
        factors = [_value(function, operation, name) for name in ("x", "y")]
        return any(factor is not None and factor.numel() == 1 and float(factor) == -1 for factor in factors)
    zero = _value(function, operation, "x") if operation.type == "sub" else None
    return zero is not None and not zero.any()
