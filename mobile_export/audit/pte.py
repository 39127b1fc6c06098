"""A .pte: what its constants, named data and delegates hold, and which weights are in float."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mobile_export.audit.fixed import is_weight_matrix
from mobile_export.audit.flatbuffer import UINT32, UINT64
from mobile_export.audit.payloads import Audit, FloatMatrix, audit_of, is_matrix
from mobile_export.audit.program import (
    Buffer,
    Call,
    Delegate,
    NamedData,
    Plan,
    Program,
    PteFile,
    Span,
    StoredTensor,
    SubsegmentOffsets,
    damaged,
    open_pte,
)
from mobile_export.audit.ranges import Range, payloads_of, unused
from mobile_export.audit.xnnpack import XnnpackGraph, read_xnnpack
from mobile_export.units import counted

Key = tuple[int | None, int]  # mutable segment, None for the constant one; index within it
XNNPACK, CORE_ML = "XnnpackBackend", "CoreMLBackend"
WEIGHTS = {  # operator -> arguments it takes a weight from
    "aten::linear": (1,),
    "aten::mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::bmm": (0, 1),
    "aten::baddbmm": (1, 2),
    "aten::matmul": (0, 1),
}
GATHER = "aten::embedding"  # (table, indices)
SAME_VALUES = {  # operators whose result is their first argument in another shape, order or dtype
    *("aten::permute_copy", "aten::t_copy", "aten::transpose_copy", "aten::view_copy", "aten::clone", "aten::expand_copy"),
    *("aten::unsqueeze_copy", "aten::squeeze_copy", "aten::_to_copy", "executorch_prim::et_view"),
    *("dim_order_ops::_to_dim_order_copy", "dim_order_ops::_clone_dim_order"),
}
SIZE_ONLY = "aten::sym_size"  # its result says nothing of its argument's values


def audit_pte(path: Path, float_expected: bool | None = None) -> Audit:
    """Audit a .pte; of one whose only delegate is a Core ML package, that package. float_expected: see audit_artifact.

    Raises:
        InputError: no such file, not a program, cut off or damaged.
    """
    contents = _contents(open_pte(path))
    if [delegate.backend for _, delegate in contents.delegates()] == [CORE_ML]:
        from mobile_export.audit.mlpackage import audit_mlpackage
        from mobile_export.verify.coreml_delegate import delegated_package

        with delegated_package(path) as package:
            return replace(audit_mlpackage(package, float_expected), file=str(path))
    file, ranges = contents.file, list(_ranges(contents))
    payloads = payloads_of({path.name: file.view}, ranges)
    weights: dict[tuple[str, int, int], Range] = {}
    for weight in _float_weights(contents):
        weights.setdefault(weight.place, weight)
    matrices = [
        FloatMatrix(found.name, found.dtype, found.shape, found.bytes)
        for found in weights.values()
        if found.shape is not None and is_weight_matrix(found.dtype, found.shape, partial(_content, file, found))
    ]
    if float_expected is None:
        float_expected = not _quantized(contents)
    used = [(0, file.program_bytes), *((found.offset, found.offset + found.bytes) for found in ranges)]
    gaps = unused(path.name, len(file.view), used)
    return audit_of(str(path), payloads, matrices, float_expected, gaps, _unread(contents))


@dataclass(frozen=True)
class _Contents:
    """A program with what lies in its segments.

    constants: by where tensors find them. named: key -> place. graphs: an XNNPACK delegate's place -> what is in it.
    """

    file: PteFile
    constants: dict[Key, Range]
    named: dict[str, Span]
    graphs: dict[Span, XnnpackGraph]

    def delegates(self) -> Iterator[tuple[str, Delegate]]:
        """Every delegate of every method, with a name."""
        for plan in self.file.plans:
            for number, delegate in enumerate(plan.delegates):
                yield f"delegate {number}", delegate

    def constant_of(self, delegate: Delegate, index: int, name: str) -> Range | None:
        """A constant of an XNNPACK delegate; None where it lies in another file."""
        graph = self.graphs[delegate.span]
        if index >= len(graph.constants):
            raise damaged(self.file.path, f"constant {index} of a delegate with {len(graph.constants)}")
        constant = graph.constants[index]
        begin = delegate.span[0] + constant.offset
        place = self.named.get(constant.key) if constant.key else (begin, begin + constant.bytes)
        if place is None:
            return None
        return Range(name, self.file.path.name, place[0], place[1] - place[0], *graph.described.get(index, ("", None)))


def _contents(file: PteFile) -> _Contents:
    named = {
        entry.text(NamedData.KEY): file.segment(entry.number(NamedData.SEGMENT_INDEX, UINT32))
        for entry in file.program.tables(Program.NAMED_DATA)
    }
    spans = sorted({d.span for plan in file.plans for d in plan.delegates if d.backend == XNNPACK})
    graphs = {span: read_xnnpack(str(file.path), file.view[span[0] : span[1]]) for span in spans}
    return _Contents(file, _constants(file), named, graphs)


# --- what it stores ----------------------------------------------------------------------------------------------------


def _constants(file: PteFile) -> dict[Key, Range]:
    """(mutable segment or None, index) -> its range, for the tensors of every method."""
    tensors: dict[Key, list[StoredTensor]] = defaultdict(list)
    users: dict[Key, str] = {}
    for plan in file.plans:
        for tensor in plan.tensors.values():
            tensors[tensor.state, tensor.index].append(tensor)
        for call in plan.calls:
            for argument in call.arguments:
                if argument in plan.tensors and call.operator is not None:
                    used = plan.tensors[argument]
                    users.setdefault((used.state, used.index), call.operator)
    ranges = {}
    for key, begin, longest in _constant_places(file):
        kind, using = ("constant" if key[0] is None else "initial state"), tensors[key]
        name = f"{kind} {key[1]}" + (f" ({users[key]})" if key in users else "")
        size = max((t.bytes for t in using if t.bytes is not None), default=longest)
        if not 0 <= size <= longest:
            raise damaged(file.path, f"{name}: {size:,} bytes where {longest:,} are")
        dtype, shape = next(((t.dtype, t.shape) for t in using if t.bytes == size), ("", None))
        ranges[key] = Range(name, file.path.name, begin, size, dtype, shape)
    missing = next((key for key in tensors if tensors[key] and key not in ranges), None)
    if missing is not None:
        raise damaged(file.path, f"constant {missing[1]} is not there")
    return ranges


def _constant_places(file: PteFile) -> Iterator[tuple[Key, int, int]]:
    """Key, begin, and the bytes up to the next constant. Index 0 stands for tensors without bytes."""
    program = file.program
    for index, entry in enumerate(program.tables(Program.CONSTANT_BUFFER)):
        if index:
            yield (None, index), *entry.span(Buffer.STORAGE)
    constant = program.table(Program.CONSTANT_SEGMENT)
    states = enumerate(program.tables(Program.MUTABLE_DATA_SEGMENTS))
    for state, table in (*([(None, constant)] if constant is not None else []), *states):
        offsets = table.numbers(SubsegmentOffsets.OFFSETS, UINT64)
        if not offsets:
            continue
        begin, end = file.segment(table.number(SubsegmentOffsets.SEGMENT_INDEX, UINT32))
        ends = sorted({*offsets, end - begin})
        for index, offset in enumerate(offsets):
            following = bisect_right(ends, offset)
            if index:
                yield (state, index), begin + offset, (ends[following] if following < len(ends) else offset) - offset


def _ranges(contents: _Contents) -> Iterator[Range]:
    """All that is stored. Named data last: whoever uses it gives the better name."""
    file = contents.file.path.name
    yield from contents.constants.values()
    for title, delegate in contents.delegates():
        begin, end = delegate.span
        if delegate.backend != XNNPACK:
            yield Range(f"{title} of {delegate.backend}", file, begin, end - begin)
            continue
        graph = contents.graphs[delegate.span]
        yield Range(f"{title}, graph", file, begin, graph.graph_bytes)
        for index in range(1, len(graph.constants)):
            found = contents.constant_of(delegate, index, f"{title}, constant {index}")
            if found is not None:
                yield found
    for key, (begin, end) in contents.named.items():
        yield Range(f"named {key[:12]}", file, begin, end - begin)


def _unread(contents: _Contents) -> list[str]:
    backends = sorted({delegate.backend for _, delegate in contents.delegates()} - {XNNPACK})
    elsewhere = sum(plan.elsewhere for plan in contents.file.plans)
    keys = {constant.key for graph in contents.graphs.values() for constant in graph.constants}
    elsewhere += len(keys - {""} - contents.named.keys())
    return [
        *(f"delegates of {backend}: hashed whole, not looked into" for backend in backends),
        *([f"{counted(elsewhere, 'constant')} in another file"] if elsewhere else []),
    ]


# --- what is in float --------------------------------------------------------------------------------------------------


def _float_weights(contents: _Contents) -> Iterator[Range]:
    """Constants that a linear, a product or the token gather takes as its weight as they are, named by who does."""
    for plan in contents.file.plans:
        producers = {call.arguments[-1]: call for call in plan.calls if call.operator and call.arguments}
        for argument, user in _weights_outside(plan, producers, contents.graphs):
            tensor = plan.tensors.get(_source(argument, producers))
            if tensor is not None:
                found = contents.constants[tensor.state, tensor.index]
                yield replace(found, name=f"constant {tensor.index} ({user})", dtype=tensor.dtype, shape=tensor.shape)
    for title, delegate in contents.delegates():
        for weight in contents.graphs[delegate.span].weights if delegate.backend == XNNPACK else ():
            if weight.constant and not weight.quantized:
                inside = contents.constant_of(delegate, weight.constant, f"{title}, constant {weight.constant}")
                if inside is not None:
                    yield replace(inside, dtype=weight.dtype, shape=weight.shape)


def _weights_outside(plan: Plan, producers: dict[int, Call], graphs: dict[Span, XnnpackGraph]) -> Iterator[tuple[int, str]]:
    """Values of a method used as weights, also those given to a delegate that multiplies by them."""
    for call in plan.calls:
        if call.operator is None:
            delegate = plan.delegates[call.delegate] if 0 <= call.delegate < len(plan.delegates) else None
            for weight in graphs[delegate.span].weights if delegate is not None and delegate.backend == XNNPACK else ():
                if weight.argument is not None and weight.argument < len(call.arguments):
                    yield call.arguments[weight.argument], f"weight of delegate {call.delegate}"
        elif call.operator == GATHER and len(call.arguments) > 1 and _comes_from_tokens(call.arguments[1], plan, producers):
            yield call.arguments[0], call.operator
        else:
            for index in WEIGHTS.get(call.operator, ()):
                if index < len(call.arguments):
                    yield call.arguments[index], call.operator


def _comes_from_tokens(value: int, plan: Plan, producers: dict[int, Call]) -> bool:
    """Computed from the first input's values; a table of positions is gathered by the second's."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value == plan.first_input:
            return True
        call = producers.get(value)
        if value not in seen and call is not None and call.operator != SIZE_ONLY:
            waiting.extend(call.arguments[:-1])
        seen.add(value)
    return False


def _source(value: int, producers: dict[int, Call]) -> int:
    """The value that another has its numbers from."""
    seen: set[int] = set()
    while value in producers and value not in seen and producers[value].operator in SAME_VALUES:
        seen.add(value)
        value = producers[value].arguments[0]
    return value


def _quantized(contents: _Contents) -> bool:
    """Whether any matrix is quantized: within a delegate, or as a table of small integers outside."""
    inside = any(weight.quantized for graph in contents.graphs.values() for weight in graph.weights)
    tensors = [tensor for plan in contents.file.plans for tensor in plan.tensors.values() if tensor.state is None]
    return inside or any(t.dtype in ("int8", "uint8") and is_matrix(t.shape) for t in tensors)


def _content(file: PteFile, found: Range) -> memoryview:
    return file.view[found.offset : found.offset + found.bytes]
