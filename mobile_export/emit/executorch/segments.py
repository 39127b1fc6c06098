"""Assemble the file: equal delegates merged, and every payload laid down once even where two segments need it.

The embedding operator reads its table from the program's constant segment, XNNPACK reads the head's from a named segment
of its own, and the bytes are equal. Segments are (offset, size) pairs, so the head's may point into the constant segment.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from executorch.exir import ExecutorchBackendConfig, ExecutorchProgramManager
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir._serialize._program import _get_extended_header
from executorch.exir._serialize._serialize import serialize_for_executorch
from executorch.exir._serialize.data_serializer import DataEntry
from executorch.exir._serialize.generated.executorch_flatbuffer.DataSegment import DataSegment
from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program
from executorch.exir.schema import BackendDelegate, DelegateCall, ExecutionPlan, KernelCall

ALIGNMENT = 16  # bytes: what a named segment's reader may rely on
PROGRAM_SEGMENTS, DATA_SEGMENT_OFFSET = 12, 4  # vtable slots of Program.segments and DataSegment.offset in program.fbs


def merge_equal_delegates(plan: ExecutionPlan) -> None:
    """Let every call of an equal delegate (same backend, payload and options) use one entry: one packed copy, one init."""
    first: dict[tuple[Any, ...], int] = {}
    kept: list[BackendDelegate] = []
    index_of: list[int] = []
    for delegate in plan.delegates:
        options = tuple((spec.key, bytes(spec.value)) for spec in delegate.compile_specs)
        key = (delegate.id, delegate.processed.location, delegate.processed.index, options)
        if key not in first:
            first[key] = len(kept)
            kept.append(delegate)
        index_of.append(first[key])
    plan.delegates = kept
    for chain in plan.chains:
        for instruction in chain.instructions:
            if isinstance(instruction.instr_args, DelegateCall):
                instruction.instr_args.delegate_index = index_of[instruction.instr_args.delegate_index]


def assemble(manager: ExecutorchProgramManager) -> bytes:
    """The .pte's bytes, with named payloads that equal a constant of the program stored as that constant only."""
    emitted, named = manager._emitter_output, manager._named_data
    merge_equal_delegates(emitted.program.execution_plan[0])
    constants = _offsets_of_constants([buffer.storage for buffer in emitted.program.constant_buffer])
    named, aliased = _put_aliases_last(named, constants)
    file, others = serialize_for_executorch(emitted, ExecutorchBackendConfig(), manager._data_serializer, named)
    assert not others, "every payload lies in the one file"
    return _point_into_constants(bytearray(bytes(file)), aliased) if aliased else bytes(file)


def count_calls(plan: ExecutionPlan) -> tuple[dict[str, int], int]:
    """What one step calls: operators outside a delegate by name, most frequent first, and the number of delegate calls."""
    outside: Counter[str] = Counter()
    delegate_calls = 0
    for instruction in (i for chain in plan.chains for i in chain.instructions):
        if isinstance(instruction.instr_args, DelegateCall):
            delegate_calls += 1
        elif isinstance(instruction.instr_args, KernelCall):
            outside[plan.operators[instruction.instr_args.op_index].name] += 1
    return dict(outside.most_common()), delegate_calls


def named_bytes(manager: ExecutorchProgramManager) -> dict[str, int]:
    """Name -> bytes of every payload delegates look up by name."""
    named = manager._named_data
    return {key: len(named.buffers[entry.buffer_index]) for key, entry in named.pte_data.items()}


def _offsets_of_constants(buffers: list[bytes]) -> dict[bytes, int]:
    """SHA-256 of each constant -> its offset in the constant segment, as the serializer will lay them out."""
    offsets: dict[bytes, int] = {}
    end = 0
    for data in buffers:
        offsets.setdefault(hashlib.sha256(data).digest(), end)
        end += -(-len(data) // ALIGNMENT) * ALIGNMENT
    return offsets


def _put_aliases_last(named: NamedDataStoreOutput, constants: dict[bytes, int]) -> tuple[NamedDataStoreOutput, list[int]]:
    """Order named data so that payloads equal to a constant come last; their offsets within the constant segment."""
    fresh: dict[str, DataEntry] = {}
    aliases: dict[str, DataEntry] = {}
    aliased_buffers: dict[int, int] = {}
    for key, entry in named.pte_data.items():
        digest = hashlib.sha256(named.buffers[entry.buffer_index]).digest()
        if digest in constants:
            aliases[key] = entry
            aliased_buffers.setdefault(entry.buffer_index, constants[digest])
        else:
            fresh[key] = entry
    ordered = NamedDataStoreOutput(buffers=named.buffers, pte_data={**fresh, **aliases}, external_data={})
    return ordered, list(aliased_buffers.values())


def _point_into_constants(file: bytearray, offsets: list[int]) -> bytes:
    """Point the last segments at offsets within segment 0, and cut the file where they began."""
    header = _get_extended_header(bytes(file[:256]))
    assert header is not None, "a program with segments has a header"
    segments = _segments(bytes(file[: header.program_size]))
    for segment, offset in zip(segments[-len(offsets) :], offsets, strict=True):
        place = segment._tab.Pos + segment._tab.Offset(DATA_SEGMENT_OFFSET)
        file[place : place + 8] = (segments[0].Offset() + offset).to_bytes(8, "little")
    last = segments[-len(offsets) - 1]
    header.segment_data_size = last.Offset() + last.Size()
    written, at = header.to_bytes(), file.index(header.EXPECTED_MAGIC, 0, 64)
    file[at : at + len(written)] = written
    return bytes(file[: header.segment_base_offset + header.segment_data_size])


def _segments(program: bytes) -> list[DataSegment]:
    """The segment table of a serialized program, each entry with its place in the bytes."""
    table = Program.GetRootAs(program, 0)._tab
    start, found = table.Vector(table.Offset(PROGRAM_SEGMENTS)), []
    for index in range(table.VectorLen(table.Offset(PROGRAM_SEGMENTS))):
        segment = DataSegment()
        segment.Init(program, table.Indirect(start + 4 * index))
        found.append(segment)
    return found
