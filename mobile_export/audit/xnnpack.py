"""An XNNPACK delegate's payload: a graph as a flatbuffer, and constants behind it or under names of the program.

Source: executorch `backends/xnnpack/serialization/schema.fbs`; the header `xnnpack_graph_serialize.py`, XNNHeader.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mobile_export.audit.flatbuffer import INT16, UINT8, UINT32, UINT64, Flatbuffer, Table

MAGIC, HEADER_BYTES = b"XH00", 30
DTYPES = {
    1: "float32",
    2: "float16",
    3: "int8",
    4: "uint8",
    5: "int32",
    6: "int8",
    7: "int32",
    8: "int4",
    10: "int4",
    12: "int32",
}
DTYPES |= {14: "bfloat16"}
EXTERNAL_INPUT = 1  # XNN_VALUE_FLAG_EXTERNAL_INPUT


class XNNGraph(IntEnum):  # the enums below are the schema's tables, their members' values the fields' numbers
    XNODES, XVALUES, CONSTANT_DATA = 1, 2, 8


class XNode(IntEnum):
    XNODE_UNION = 1


class XValue(IntEnum):
    XVALUE_UNION = 1


class XNodeUnion(IntEnum):
    XNNFULLYCONNECTED, XNNBATCHMATRIXMULTIPLY = 2, 37


class XValueUnion(IntEnum):
    XNNTENSORVALUE, XNNQUANTIZEDTENSORVALUE = 1, 2


class XNNFullyConnected(IntEnum):
    FILTER_ID = 1


class _XNNNode2x1(IntEnum):
    INPUT1_ID, INPUT2_ID = 0, 1


class XNNQuantizedTensorValue(IntEnum):
    TENSOR_VALUE, QUANT_PARAMS = 0, 2


class XNNQuantParams(IntEnum):
    PERCHANNELQUANT, PERCHANNELGROUPQUANT = 1, 4


class PerChannelQuant(IntEnum):
    SCALE_BUFFER_IDX = 2


class PerChannelGroupQuant(IntEnum):
    SCALE_BUFFER_IDX = 4


class XNNTensorValue(IntEnum):
    DATATYPE, DIMS, CONSTANT_BUFFER_IDX, EXTERNAL_ID, FLAGS, ID_OUT = 0, 2, 3, 4, 5, 6


class ConstantDataOffset(IntEnum):
    OFFSET, SIZE, NAMED_KEY = 0, 1, 2


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. constant: its index, 0 for none. argument: of the delegate's call, None where it is no input."""

    dtype: str
    shape: tuple[int, ...]
    quantized: bool
    constant: int
    argument: int | None


@dataclass(frozen=True)
class Constant:
    """key: its name in the program, or "" where it lies in the payload, `bytes` long from `offset` of it."""

    key: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class XnnpackGraph:
    """What an audit asks of a delegate.

    graph_bytes: of the payload before the first of its own constants.
    described: constant -> what the values say of it: the tensor's dtype and shape, or "scales" and None.
    weights: what linears and products multiply by, one a node and operand.
    """

    graph_bytes: int
    constants: tuple[Constant, ...]
    described: dict[int, tuple[str, tuple[int, ...] | None]]
    weights: tuple[Value, ...]


def read_xnnpack(where: str, payload: memoryview) -> XnnpackGraph:
    """Read a delegate's payload.

    Raises:
        InputError: damaged or cut off.
    """
    whole = Flatbuffer(where, payload)
    begin, graph_bytes, constants_at, end = 0, len(payload), len(payload), len(payload)
    if bytes(payload[4:8]) == MAGIC:
        begin, constants_at = whole.number(UINT32, 10), whole.number(UINT32, 18)
        graph_bytes = whole.number(UINT32, 14)
        end = constants_at + whole.number(UINT64, 22)
        if begin + graph_bytes > constants_at or end > len(payload):
            raise whole.damaged(f"a delegate of {len(payload):,} bytes with constants to byte {end:,}")
    root = Flatbuffer(where, payload[begin : begin + graph_bytes]).root()
    constants = tuple(_constant(entry, constants_at) for entry in root.tables(XNNGraph.CONSTANT_DATA))
    if any(not c.key and c.offset + c.bytes > end for c in constants):
        raise whole.damaged(f"a constant beyond a delegate of {len(payload):,} bytes")
    values: dict[int, Value] = {}
    described: dict[int, tuple[str, tuple[int, ...] | None]] = {}
    for entry in root.tables(XNNGraph.XVALUES):
        number, value, scales = _value(entry)
        values[number] = value
        described[scales] = ("scales", None)
        described[value.constant] = (value.dtype, value.shape)
    weights = [values[i] for node in root.tables(XNNGraph.XNODES) for i in _weights(node) if i in values]
    return XnnpackGraph(constants_at, constants, described, tuple(weights))


def _constant(entry: Table, constants_at: int) -> Constant:
    key = entry.text(ConstantDataOffset.NAMED_KEY)
    if key:
        return Constant(key, 0, 0)
    offset, size = (entry.number(field, UINT64) for field in (ConstantDataOffset.OFFSET, ConstantDataOffset.SIZE))
    return Constant("", constants_at + offset, size)


def _value(entry: Table) -> tuple[int, Value, int]:
    """A value's id, the value, and the index of its scales, 0 for none."""
    kind, tensor, scales = entry.number(XValue.XVALUE_UNION - 1, UINT8), entry.table(XValue.XVALUE_UNION), 0
    quantized = kind == XValueUnion.XNNQUANTIZEDTENSORVALUE
    if quantized and tensor is not None:
        scales = _scales(tensor)
        tensor = tensor.table(XNNQuantizedTensorValue.TENSOR_VALUE)
    if tensor is None:
        raise entry.buffer.damaged("a value without a tensor")
    external = tensor.number(XNNTensorValue.FLAGS, UINT32) & EXTERNAL_INPUT
    value = Value(
        DTYPES.get(tensor.number(XNNTensorValue.DATATYPE, INT16), ""),
        tensor.numbers(XNNTensorValue.DIMS, UINT32),
        quantized,
        tensor.number(XNNTensorValue.CONSTANT_BUFFER_IDX, UINT32),
        tensor.number(XNNTensorValue.EXTERNAL_ID, UINT32) if external else None,
    )
    return tensor.number(XNNTensorValue.ID_OUT, UINT32), value, scales


def _scales(tensor: Table) -> int:
    kind = tensor.number(XNNQuantizedTensorValue.QUANT_PARAMS - 1, UINT8)
    params = tensor.table(XNNQuantizedTensorValue.QUANT_PARAMS)
    if params is None or kind not in (XNNQuantParams.PERCHANNELQUANT, XNNQuantParams.PERCHANNELGROUPQUANT):
        return 0
    grouped = kind == XNNQuantParams.PERCHANNELGROUPQUANT
    return params.number(PerChannelGroupQuant.SCALE_BUFFER_IDX if grouped else PerChannelQuant.SCALE_BUFFER_IDX, UINT32)


def _weights(node: Table) -> list[int]:
    """Ids of the values a node may take a weight from."""
    kind, found = node.number(XNode.XNODE_UNION - 1, UINT8), node.table(XNode.XNODE_UNION)
    if found is None:
        return []
    if kind == XNodeUnion.XNNFULLYCONNECTED:
        return [found.number(XNNFullyConnected.FILTER_ID, UINT32)]
    if kind == XNodeUnion.XNNBATCHMATRIXMULTIPLY:
        return [found.number(field, UINT32) for field in (_XNNNode2x1.INPUT1_ID, _XNNNode2x1.INPUT2_ID)]
    return []
