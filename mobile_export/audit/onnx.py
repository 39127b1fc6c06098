"""An ONNX model and the data files beside it: initializers by the byte range they name, or by content where they are inline.

Any exporter's file. Source: onnx.proto3 (TensorProto.external_data); onnxruntime's ContribOperators.md for its operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from mobile_export.audit.fixed import is_weight_matrix
from mobile_export.audit.payloads import SMALL, Audit, FloatMatrix, Payload, audit_of
from mobile_export.audit.ranges import AGAIN, Range, digest, map_file, payloads_of, unused
from mobile_export.errors import InputError
from mobile_export.units import counted

WEIGHTS = {  # operator -> inputs it takes a weight from
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Einsum": (0, 1),
    "com.microsoft.FusedMatMul": (0, 1),
    "com.microsoft.FusedGemm": (0, 1),
    "com.microsoft.Attention": (1,),
    "com.microsoft.MoE": (2, 5, 8),
    "com.microsoft.EmbedLayerNormalization": (2,),
}
GATHER = "Gather"  # (table, indices)
QUANTIZED = {
    *("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear", "MatMulBnb4", "QMoE", "QAttention", "QGemm"),
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul"),
}
SAME_VALUES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "CastLike", "Expand"}
SIZE_ONLY = {"Shape", "Size"}  # their results say nothing of their inputs' values
POSITIONS = {"position_ids", "attention_mask", "cache_position"}  # graph inputs as onnxruntime-genai and optimum name them
DTYPES = {"float": "float32", "double": "float64"}
BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
NO_SIZE = (TensorProto.UNDEFINED, TensorProto.STRING)


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor of the model, told from others by identity.

    range: of a data file; None where the bytes lie inside model.onnx, which `read` then copies.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    range: Range | None
    read: Callable[[], memoryview]


@dataclass(frozen=True)
class _Scope:
    """A graph within the graphs around it: what is stored in it, which node makes a value, what it is given."""

    stored: dict[str, _Stored]
    producers: dict[str, NodeProto]
    given: frozenset[str]
    nodes: Sequence[NodeProto]
    outer: _Scope | None

    def owner(self, name: str) -> _Scope | None:
        """The innermost graph that knows a value."""
        if name in self.stored or name in self.producers or name in self.given:
            return self
        return self.outer.owner(name) if self.outer is not None else None


class _DataFiles:
    """The data files beside a model, each mapped once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.views: dict[str, memoryview] = {}

    def view(self, name: str, location: str) -> memoryview:
        """A data file below the model's folder, by its path alone: a download cache may hold it as a link."""
        relative = PurePosixPath(location)
        if not relative.name or relative.is_absolute() or ".." in relative.parts or "\0" in location or "\\" in location:
            what = f"{name}: its data lies at {location!r}, outside the folder"
            raise InputError(str(self.path), what, "do not use this file")
        if str(relative) not in self.views:
            beside = self.path.parent / relative
            if not beside.exists():
                raise InputError(str(self.path), f"{name}: its data file {location} is not there", "put it beside the model")
            self.views[str(relative)] = map_file(beside)
        return self.views[str(relative)]


def audit_onnx(path: Path, float_expected: bool | None = None) -> Audit:
    """Audit an ONNX model. float_expected: see audit_artifact.

    Raises:
        InputError: no such file, not a model, or external data that is missing, cut off or outside the folder.
    """
    model, files = _load(path), _DataFiles(path)
    scopes = list(_scopes(model.graph, files, None))
    stored = [tensor for scope in scopes for tensor in scope.stored.values()]
    ranges = [tensor.range for tensor in stored if tensor.range is not None]
    payloads = [*payloads_of(files.views, ranges), *_inline_payloads(path, stored)]
    floats: dict[object, FloatMatrix] = {}
    for scope in scopes:
        for tensor, node in _weights(scope):
            place = tensor.range.place if tensor.range is not None else tensor
            if place not in floats and is_weight_matrix(tensor.dtype, tensor.shape, tensor.read):
                user = f"{node.op_type} {node.name}".strip()
                floats[place] = FloatMatrix(f"{tensor.name} ({user})", tensor.dtype, tensor.shape, tensor.bytes)
    if float_expected is None:
        float_expected = not any(node.op_type in QUANTIZED for scope in scopes for node in scope.nodes)
    gaps = [
        gap
        for file, view in files.views.items()
        for gap in unused(file, len(view), [(r.offset, r.offset + r.bytes) for r in ranges if r.file == file])
    ]
    return audit_of(str(path), payloads, floats.values(), float_expected, gaps, _unread(model, scopes))


# --- the model ---------------------------------------------------------------------------------------------------------


def _load(path: Path) -> onnx.ModelProto:
    view = map_file(path)
    try:
        model = onnx.load_model_from_string(view.tobytes())
    except (DecodeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "cut off or damaged"
        raise InputError(str(path), f"is not an ONNX model ({reason})", AGAIN) from None
    if not model.graph.node:
        raise InputError(str(path), "is not an ONNX model, or one without a node", AGAIN)
    return model


def _scopes(graph: GraphProto, files: _DataFiles, outer: _Scope | None) -> Iterator[_Scope]:
    """A graph and the bodies of its loops and branches, the outermost first."""
    stored: dict[str, _Stored] = {}
    constants = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    for name, tensor in (*((tensor.name, tensor) for tensor in graph.initializer), *constants):
        if name in stored:
            raise InputError(str(files.path), f"two tensors are named {name!r}", AGAIN)
        stored[name] = _stored(str(name), tensor, files)
    producers = {name: node for node in graph.node for name in node.output if name and name not in stored}
    given = frozenset(value.name for value in graph.input) - stored.keys()  # old files list initializers as inputs
    scope = _Scope(stored, producers, given, list(graph.node), outer)
    yield scope
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _scopes(body, files, scope)


def _unread(model: onnx.ModelProto, scopes: Sequence[_Scope]) -> list[str]:
    sparse = len(model.graph.sparse_initializer)
    compiled = sum(node.op_type == "EPContext" for scope in scopes for node in scope.nodes)
    return [
        *([f"{counted(len(model.functions), 'function')} of the model"] if model.functions else []),
        *([f"{counted(sparse, 'sparse initializer')}"] if sparse else []),
        *([f"{counted(compiled, 'EPContext node')}, compiled for one device"] if compiled else []),
    ]


# --- what it stores ----------------------------------------------------------------------------------------------------


def _stored(name: str, tensor: TensorProto, files: _DataFiles) -> _Stored:
    """A tensor with its place, held against its shape."""
    where, shape = str(files.path), tuple(tensor.dims)
    if tensor.data_type not in TensorProto.DataType.values() or any(size < 0 for size in shape):
        raise InputError(where, f"{name}: type {tensor.data_type}, shape {list(shape)}", AGAIN)
    written = TensorProto.DataType.Name(tensor.data_type).lower()
    dtype = DTYPES.get(written, written)
    if tensor.data_type in NO_SIZE:
        return _Stored(name, dtype, shape, 0, None, lambda: memoryview(b""))
    needed = _bytes(tensor)
    if tensor.data_location != TensorProto.EXTERNAL:
        size = len(tensor.raw_data) or needed
        if size != needed:
            raise InputError(where, f"{name}: {dtype} {list(shape)} takes {needed:,} bytes, {size:,} are there", AGAIN)
        return _Stored(name, dtype, shape, size, None, lambda: _inline(where, name, tensor))
    location, offset, length = _external(where, name, tensor, needed)
    if length != needed:
        raise InputError(where, f"{name}: {dtype} {list(shape)} takes {needed:,} bytes, {length:,} are named", AGAIN)
    view = files.view(name, location)
    place = Range(name, str(PurePosixPath(location)), offset, length, dtype, shape)
    return _Stored(name, dtype, shape, length, place, lambda: view[offset : offset + length])


def _external(where: str, name: str, tensor: TensorProto, needed: int) -> tuple[str, int, int]:
    """Location, offset and length; without a length, what the shape needs."""
    entries = {entry.key: str(entry.value) for entry in tensor.external_data}  # text that is no UTF-8 comes as bytes
    numbers = []
    for key, default in (("offset", "0"), ("length", str(needed))):
        text = entries.get(key, default)
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise InputError(where, f"{name}: {key} {text!r} is no count of bytes", AGAIN)
        numbers.append(int(text))
    return entries.get("location", ""), numbers[0], numbers[1]


def _bytes(tensor: TensorProto) -> int:
    bits = BITS.get(tensor.data_type) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


def _inline(where: str, name: str, tensor: TensorProto) -> memoryview:
    if tensor.raw_data:
        return memoryview(tensor.raw_data)
    try:
        return memoryview(numpy_helper.to_array(tensor).tobytes())
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(where, f"{name}: its values do not fill its shape ({reason})", AGAIN) from None


def _inline_payloads(path: Path, stored: Sequence[_Stored]) -> Iterator[Payload]:
    for tensor in stored:
        if tensor.range is None and tensor.bytes >= SMALL:
            content = digest(tensor.read())
            yield Payload((tensor.name,), tensor.dtype, tensor.shape, tensor.bytes, content, path.name, None)


# --- what is in float --------------------------------------------------------------------------------------------------


def _weights(scope: _Scope) -> Iterator[tuple[_Stored, NodeProto]]:
    """Stored tensors that a product or the token gather takes as its weight, of any dtype, and the node."""
    for node in scope.nodes:
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        inputs = WEIGHTS.get(operator, ())
        if operator == GATHER and len(node.input) > 1 and _comes_from_tokens(node.input[1], scope):
            inputs = () if _are_scales(node.output[0], scope) else (0,)
        for index in inputs:
            tensor = _source(node.input[index], scope) if index < len(node.input) else None
            if tensor is not None:
                yield tensor, node


def _are_scales(name: str, scope: _Scope) -> bool:
    """Whether a value is only ever what a DequantizeLinear multiplies its codes with."""
    uses = [(node, index) for node in scope.nodes for index, given in enumerate(node.input) if given == name]
    return bool(uses) and all(
        (node.op_type == "DequantizeLinear" and index == 1)
        or (node.op_type in SAME_VALUES and index == 0 and _are_scales(node.output[0], scope))
        for node, index in uses
    )


def _source(name: str, scope: _Scope) -> _Stored | None:
    """The stored tensor a value has its numbers from, if any."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        owner = scope.owner(name)
        if owner is None or name in owner.stored or name not in owner.producers:
            return owner.stored.get(name) if owner is not None else None
        node = owner.producers[name]
        if node.op_type not in SAME_VALUES or not node.input:
            return None
        name = node.input[0]
    return None


def _comes_from_tokens(name: str, scope: _Scope) -> bool:
    """Computed from the values of a graph input that is not known to hold positions: no table of positions or angles."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        owner = scope.owner(name)
        if name in seen or owner is None or name in owner.stored:
            continue
        seen.add(name)
        if name in owner.given:
            if name not in POSITIONS:
                return True
        elif owner.producers[name].op_type not in SIZE_ONLY:
            waiting.extend(owner.producers[name].input)
    return False
