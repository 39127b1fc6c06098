"""A Core ML package: payloads by the places its programs name in the weight files. Any exporter's ML program."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from mobile_export.audit.fixed import is_weight_matrix
from mobile_export.audit.payloads import Audit, FloatMatrix, audit_of
from mobile_export.audit.ranges import Range, payloads_of, unused
from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.blob import ENTRY, HEADER, Entry
from mobile_export.verify.mlprogram.package import AGAIN, MODEL_FOLDER
from mobile_export.verify.mlprogram.program import Function, Operation, Program
from mobile_export.verify.mlprogram.values import Constant

WEIGHTS = {"linear": ("weight",), "conv": ("weight",), "matmul": ("x", "y")}  # operator -> inputs it takes a weight from
GATHERS = {"gather": ("x", "indices"), "gather_along_axis": ("x", "indices"), "gather_nd": ("x", "indices")}
SAME_INDICES = {"cast": "x", "reshape": "x", "squeeze": "x", "expand_dims": "x", "select": "a"}  # and the input that passes on


def audit_mlpackage(path: Path, float_expected: bool | None = None) -> Audit:
    """What the weight files of a package hold.

    Args:
        float_expected: float matrices are no finding. None: where nothing is quantized.
    Raises:
        InputError: no package, or a damaged one.
    """
    program = Program.open(path)
    ranges: list[Range] = []
    used = {name: [(0, HEADER.size)] for name in program.weights}
    for file, entry_at, entry, named in _stored(program):
        ranges.append(named)
        used[file] += [(entry_at, entry_at + ENTRY.size), (entry.offset, entry.offset + entry.bytes)]
    views = {_spoken(name): weights.data for name, weights in program.weights.items()}
    floats = list({matrix.name: matrix for matrix in _float_matrices(program)}.values())
    quantized = any(function.compressed for function in program.functions.values())
    gaps = [gap for name, pairs in used.items() for gap in unused(_spoken(name), len(program.weights[name].data), pairs)]
    expected = not quantized if float_expected is None else float_expected
    return audit_of(str(path), payloads_of(views, ranges), floats, expected, gaps)


def _stored(program: Program) -> Iterator[tuple[str, int, Entry, Range]]:
    """Every constant that lies in a weight file: the file, its entry's offset, the entry, and its bytes' range."""
    for function in program.functions.values():
        for operation in function.operations:
            for parameter, values in operation.inputs.items():
                for value in values:
                    if isinstance(value, Constant) and value.immediate is None:
                        if value.file not in program.weights:
                            what = f"{operation.name} is in {value.file}, which the package does not hold"
                            raise InputError(program.where, what, AGAIN)
                        entry = program.weights[value.file].entry(value.offset)
                        name = operation.name if operation.type == "const" else f"{operation.name}.{parameter}"
                        sizes = tuple(value.type.sizes)
                        place = Range(name, _spoken(value.file), entry.offset, entry.bytes, value.type.dtype, sizes)
                        yield value.file, value.offset, entry, place


def _float_matrices(program: Program) -> Iterator[FloatMatrix]:
    """Weights of products and tables of tokens that are stored in float."""
    for function in program.functions.values():
        for operation in function.operations:
            for parameter in _weights_of(function, operation):
                name = str(operation.inputs[parameter][0])
                value = function.constants.get(name)
                if value is None or not isinstance(value, Constant):
                    continue
                shape, content = tuple(value.type.sizes), functools.partial(_content, program, function.name, name)
                if is_weight_matrix(value.type.dtype, shape, content):
                    yield FloatMatrix(name, value.type.dtype, shape, len(content()))


def _content(program: Program, function: str, name: str) -> memoryview:
    return memoryview(program.constant(function, name).numpy().tobytes())


def _weights_of(function: Function, operation: Operation) -> tuple[str, ...]:
    """Parameters of an operation that are weights: tables of positions are looked up by computed rows, and are none."""
    if operation.type in GATHERS:
        table, indices = GATHERS[operation.type]
        return (table,) if _from_input(function, operation.inputs[indices][0]) else ()
    return WEIGHTS.get(operation.type, ())


def _from_input(function: Function, value: str | Constant) -> bool:
    """Whether a value is one the caller gives, however it is cast and shaped, and no position."""
    names = {given.name for given in function.inputs if "pos" not in given.name.lower()}
    while isinstance(value, str) and value not in names:
        producer = function.producers.get(value)
        if producer is None or producer.type not in SAME_INDICES:
            return False
        value = producer.inputs[SAME_INDICES[producer.type]][0]
    return isinstance(value, str)


def _spoken(file: str) -> str:
    return file.removeprefix(f"{MODEL_FOLDER}/")
