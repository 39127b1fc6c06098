"""The program of a .pte: methods, their stored tensors and calls, delegates and segments, read in place.

Read from the bytes, not through the executorch package: importing that takes seconds, and a file it cannot load is
audited as well. Source: executorch `exir/_serialize/program.fbs`; the header `_program.py`, _ExtendedHeader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from mobile_export.audit.flatbuffer import AGAIN, INT8, INT32, UINT8, UINT32, UINT64, Flatbuffer, Table
from mobile_export.audit.ranges import map_file
from mobile_export.errors import InputError

IDENTIFIER, HEADER = b"ET", b"eh00"
Span = tuple[int, int]  # begin and end in the file
TYPES = {0: ("uint8", 1), 1: ("int8", 1), 2: ("int16", 2), 3: ("int32", 4), 4: ("int64", 8), 5: ("float16", 2)}
TYPES |= {6: ("float32", 4), 7: ("float64", 8), 11: ("bool", 1), 15: ("bfloat16", 2), 27: ("uint16", 2)}
TYPES |= {28: ("uint32", 4), 29: ("uint64", 8)}


class Program(IntEnum):  # the enums below are the schema's tables, their members' values the fields' numbers
    EXECUTION_PLAN, CONSTANT_BUFFER, BACKEND_DELEGATE_DATA, SEGMENTS = 1, 2, 3, 4
    CONSTANT_SEGMENT, MUTABLE_DATA_SEGMENTS, NAMED_DATA = 5, 6, 7


class ExecutionPlan(IntEnum):
    NAME, VALUES, INPUTS, CHAINS, OPERATORS, DELEGATES = 0, 2, 3, 5, 6, 7


class EValue(IntEnum):
    VAL = 1


class KernelTypes(IntEnum):
    TENSOR = 5


class Tensor(IntEnum):
    SCALAR_TYPE, SIZES, DATA_BUFFER_IDX, ALLOCATION_INFO, EXTRA_TENSOR_INFO = 0, 2, 5, 6, 9


class ExtraTensorInfo(IntEnum):
    MUTABLE_DATA_SEGMENTS_IDX, LOCATION = 0, 2


class Chain(IntEnum):
    INSTRUCTIONS = 2


class Instruction(IntEnum):
    INSTR_ARGS = 1


class InstructionArguments(IntEnum):
    KERNELCALL, DELEGATECALL = 1, 2


class KernelCall(IntEnum):
    OP_INDEX, ARGS = 0, 1


class DelegateCall(IntEnum):
    DELEGATE_INDEX, ARGS = 0, 1


class Operator(IntEnum):
    NAME = 0


class BackendDelegate(IntEnum):
    ID, PROCESSED = 0, 1


class BackendDelegateDataReference(IntEnum):
    LOCATION, INDEX = 0, 1


class BackendDelegateInlineData(IntEnum):
    DATA = 0


class Buffer(IntEnum):
    STORAGE = 0


class DataSegment(IntEnum):
    OFFSET, SIZE = 0, 1


class SubsegmentOffsets(IntEnum):
    SEGMENT_INDEX, OFFSETS = 0, 1


class NamedData(IntEnum):
    KEY, SEGMENT_INDEX = 0, 1


@dataclass(frozen=True)
class StoredTensor:
    """A tensor with bytes in the file. state: which mutable segment they initialise, None for a constant."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int | None  # None for a type this module does not know
    index: int
    state: int | None


@dataclass(frozen=True)
class Call:
    """An operator's name, or None and the delegate's index; argument values, the result last."""

    operator: str | None
    delegate: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Delegate:
    """span: of its payload."""

    backend: str
    span: Span


@dataclass(frozen=True)
class Plan:
    """A method of the program.

    tensors: value -> tensor, those with bytes in the file. first_input: its value, the tokens of a language model.
    elsewhere: tensors whose bytes lie in another file.
    """

    tensors: dict[int, StoredTensor]
    calls: tuple[Call, ...]
    first_input: int | None
    delegates: tuple[Delegate, ...]
    elsewhere: int


@dataclass(frozen=True)
class PteFile:
    """A mapped file. program: the root table, within the first program_bytes."""

    path: Path
    view: memoryview
    segments: tuple[Span, ...]
    plans: tuple[Plan, ...]
    program: Table
    program_bytes: int

    def segment(self, index: int) -> Span:
        """A segment's place."""
        if index >= len(self.segments):
            raise damaged(self.path, f"segment {index} of {len(self.segments)}")
        return self.segments[index]


def open_pte(path: Path) -> PteFile:
    """Map a .pte and read its program.

    Raises:
        InputError: no such file, not a program, cut off or damaged.
    """
    view = map_file(path)
    if bytes(view[4:6]) != IDENTIFIER:
        raise InputError(str(path), "is not an ExecuTorch program", "name a .pte file")
    whole = Flatbuffer(str(path), view)
    program_bytes, base = len(view), len(view)
    if bytes(view[8:12]) == HEADER:
        program_bytes, base = whole.number(UINT64, 16), whole.number(UINT64, 24)
        if program_bytes > len(view) or base > len(view):
            raise damaged(path, f"a program of {program_bytes:,} bytes in a file of {len(view):,}")
    program = Flatbuffer(str(path), view[:program_bytes]).root()
    segments = []
    for entry in program.tables(Program.SEGMENTS):
        begin, size = base + entry.number(DataSegment.OFFSET, UINT64), entry.number(DataSegment.SIZE, UINT64)
        if begin + size > len(view):
            raise damaged(path, f"a segment to byte {begin + size:,} in a file of {len(view):,}")
        segments.append((begin, begin + size))
    inline = [entry.span(BackendDelegateInlineData.DATA) for entry in program.tables(Program.BACKEND_DELEGATE_DATA)]
    payloads = (segments, [(begin, begin + size) for begin, size in inline])  # where a delegate's payload may lie
    plans = tuple(_plan(path, entry, payloads) for entry in program.tables(Program.EXECUTION_PLAN))
    if not plans:
        raise damaged(path, "a program without a method")
    return PteFile(path, view, tuple(segments), plans, program, program_bytes)


def _plan(path: Path, plan: Table, payloads: tuple[list[Span], list[Span]]) -> Plan:
    tensors, elsewhere = {}, 0
    for number, value in enumerate(plan.tables(ExecutionPlan.VALUES)):
        tensor = value.table(EValue.VAL) if value.number(EValue.VAL - 1, UINT8) == KernelTypes.TENSOR else None
        if tensor is None:
            continue
        extra = tensor.table(Tensor.EXTRA_TENSOR_INFO)
        if extra is not None and extra.number(ExtraTensorInfo.LOCATION, INT8):
            elsewhere += 1
        elif tensor.number(Tensor.DATA_BUFFER_IDX, UINT32):
            tensors[number] = _tensor(tensor, extra)
    operators = [operator.text(Operator.NAME) for operator in plan.tables(ExecutionPlan.OPERATORS)]
    calls = [
        call
        for chain in plan.tables(ExecutionPlan.CHAINS)
        for instruction in chain.tables(Chain.INSTRUCTIONS)
        if (call := _call(path, instruction, operators))
    ]
    inputs = plan.numbers(ExecutionPlan.INPUTS, INT32)
    delegates = [_delegate(path, delegate, payloads) for delegate in plan.tables(ExecutionPlan.DELEGATES)]
    return Plan(tensors, tuple(calls), inputs[0] if inputs else None, tuple(delegates), elsewhere)


def _tensor(tensor: Table, extra: Table | None) -> StoredTensor:
    dtype, size = TYPES.get(tensor.number(Tensor.SCALAR_TYPE, INT8), ("", None))
    shape = tensor.numbers(Tensor.SIZES, INT32)
    state = None
    if tensor.table(Tensor.ALLOCATION_INFO) is not None:
        state = extra.number(ExtraTensorInfo.MUTABLE_DATA_SEGMENTS_IDX, UINT64) if extra is not None else 0
    stored = None if size is None else size * math.prod(shape)
    return StoredTensor(dtype, shape, stored, tensor.number(Tensor.DATA_BUFFER_IDX, UINT32), state)


def _call(path: Path, instruction: Table, operators: Sequence[str]) -> Call | None:
    kind, call = instruction.number(Instruction.INSTR_ARGS - 1, UINT8), instruction.table(Instruction.INSTR_ARGS)
    if call is None or kind not in (InstructionArguments.KERNELCALL, InstructionArguments.DELEGATECALL):
        return None
    arguments = call.numbers(KernelCall.ARGS, INT32)
    index = call.number(KernelCall.OP_INDEX, INT32)
    if kind == InstructionArguments.DELEGATECALL:
        return Call(None, index, arguments)
    if not 0 <= index < len(operators):
        raise damaged(path, f"operator {index} of {len(operators)}")
    return Call(operators[index], -1, arguments)


def _delegate(path: Path, delegate: Table, payloads: tuple[list[Span], list[Span]]) -> Delegate:
    processed = delegate.table(BackendDelegate.PROCESSED)
    if processed is None:
        raise damaged(path, "a delegate without a payload")
    held = payloads[0 if processed.number(BackendDelegateDataReference.LOCATION, INT8) else 1]
    index = processed.number(BackendDelegateDataReference.INDEX, UINT32)
    if index >= len(held):
        raise damaged(path, f"delegate payload {index} of {len(held)}")
    return Delegate(delegate.text(BackendDelegate.ID), held[index])


def damaged(path: Path, what: str) -> InputError:
    return InputError(str(path), f"is damaged or cut off ({what})", AGAIN)
