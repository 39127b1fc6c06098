"""Types and constants of an ML program (MIL.proto) -> dtypes, shapes and tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.package import AGAIN


@dataclass(frozen=True)
class Dtype:
    """How numbers of one kind are named, stored and held."""

    number: int  # in MIL.proto, enum DataType
    bits: int  # of one where it is stored
    numpy: str  # the stored one; "" if narrower than a byte
    memory: torch.dtype  # of a constant as it is read: narrow integers take a byte


DTYPES = {
    "bool": Dtype(1, 8, "|b1", torch.bool),
    "float16": Dtype(10, 16, "<f2", torch.float16),
    "float32": Dtype(11, 32, "<f4", torch.float32),
    "int8": Dtype(21, 8, "|i1", torch.int8),
    "int16": Dtype(22, 16, "<i2", torch.int16),
    "int32": Dtype(23, 32, "<i4", torch.int32),
    "int4": Dtype(25, 4, "", torch.int8),
    "uint8": Dtype(31, 8, "|u1", torch.uint8),
    "uint16": Dtype(32, 16, "<u2", torch.int32),  # torch computes with neither this nor the next
    "uint32": Dtype(33, 32, "<u4", torch.int64),
    "uint4": Dtype(35, 4, "", torch.uint8),
    "uint2": Dtype(36, 2, "", torch.uint8),
    "uint1": Dtype(37, 1, "", torch.uint8),
    "uint6": Dtype(38, 6, "", torch.uint8),
    "uint3": Dtype(39, 3, "", torch.uint8),
}
NAMES = {dtype.number: name for name, dtype in DTYPES.items()} | {2: "string"}  # by their number
LARGEST = 1 << 29  # elements of one value: four times the largest embedding table we know
# Which dtypes lie in which of TensorValue's lists; all others are written as bytes.
LISTS = {"floats": {"float32"}, "ints": {"int16", "uint16", "int32"}, "bools": {"bool"}, "strings": {"string"}}
SMALL = {"int16": (-(1 << 15), (1 << 15) - 1), "uint16": (0, (1 << 16) - 1)}  # what of a list of int32 they may hold


@dataclass(frozen=True)
class TensorType:
    """dtype and shape; a dimension known only when the program runs is None."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"

    @property
    def sizes(self) -> list[int]:
        """The shape of a value whose dimensions are all known."""
        return [size for size in self.shape if size is not None]

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of `shape` is of this type."""
        return len(shape) == len(self.shape) and all(want in (None, got) for want, got in zip(self.shape, shape, strict=True))


@dataclass(frozen=True)
class Constant:
    """A value written in the program, or a place in a weight file."""

    type: TensorType
    immediate: torch.Tensor | str | None  # None: `file` holds it
    file: str = ""
    offset: int = 0  # bytes, of its entry in the file


def tensor_type(where: str, proto: Any) -> TensorType:
    """A ValueType message's tensor type.

    Raises:
        InputError: a list, tuple, dictionary or state, or a dtype we do not know.
    """
    kind = proto.WhichOneof("type")
    if kind != "tensorType":
        raise InputError(where, f"has the type {kind}, where a tensor is expected", AGAIN)
    tensor = proto.tensorType
    if tensor.dataType not in NAMES:
        raise InputError(where, f"has a dtype we do not know (number {tensor.dataType})", "use another export")
    sizes = [dimension.constant.size if dimension.HasField("constant") else None for dimension in tensor.dimensions]
    if tensor.rank not in (len(sizes), 0):
        raise InputError(where, f"is said to have {tensor.rank} dimensions and lists {len(sizes)}", AGAIN)
    known = [size for size in sizes if size is not None]
    if max(known, default=0) > LARGEST or math.prod(known) > LARGEST:
        raise InputError(where, f"would have {sizes} elements, more than {LARGEST:,}", AGAIN)
    return TensorType(NAMES[tensor.dataType], tuple(sizes))


def number_type(where: str, proto: Any) -> TensorType:
    """The same of a value that is computed, given or kept: text is a constant only.

    Raises:
        InputError: as `tensor_type`, or text.
    """
    type_ = tensor_type(where, proto)
    if type_.dtype == "string":
        raise InputError(where, "is text that is no constant", AGAIN)
    return type_


def constant(where: str, proto: Any) -> Constant:
    """A Value message.

    Raises:
        InputError: its type is not that of a tensor, or it does not hold what its type says.
    """
    declared = tensor_type(where, proto.type)
    if any(size is None for size in declared.shape):
        raise InputError(where, f"a constant of unknown shape ({declared})", AGAIN)
    if proto.WhichOneof("value") == "blobFileValue":
        if declared.dtype == "string":
            raise InputError(where, "a string in a weight file", AGAIN)
        return Constant(declared, None, proto.blobFileValue.fileName, proto.blobFileValue.offset)
    if proto.WhichOneof("value") != "immediateValue" or proto.immediateValue.WhichOneof("value") != "tensor":
        raise InputError(where, f"holds no value for {declared}", AGAIN)
    return Constant(declared, _immediate(where, declared, proto.immediateValue.tensor))


def unpack(raw: np.ndarray, declared: TensorType) -> torch.Tensor:
    """Bytes as they are stored -> the tensor, dtype by DTYPES. Narrow integers fill bytes from the lowest bit on.

    Args:
        raw: uint8, exactly `stored_bytes(declared)`.
    """
    shape = declared.sizes
    dtype = DTYPES[declared.dtype]
    count, bits = math.prod(shape), dtype.bits
    if bits < 8:
        width = 3 if bits in (3, 6) else 1  # bytes after which values and bytes begin together again
        padded = np.concatenate([raw, np.zeros(-len(raw) % width, np.uint8)]).reshape(-1, width)
        words = (padded.astype(np.uint32) << np.arange(0, 8 * width, 8, dtype=np.uint32)).sum(1) if width > 1 else padded[:, 0]
        lanes = np.arange(0, 8 * width, bits, dtype=words.dtype)
        values = ((words[:, None] >> lanes) & words.dtype.type((1 << bits) - 1)).astype(np.uint8).reshape(-1)[:count]
        if declared.dtype == "int4":
            values = ((values ^ 8).astype(np.int8) - 8).astype(np.int8)  # two's complement
        return torch.from_numpy(values.reshape(shape))
    if declared.dtype == "bool":
        return torch.from_numpy(raw.reshape(shape) != 0)
    values = raw.view(dtype.numpy).reshape(shape)
    wider = {"uint16": np.int32, "uint32": np.int64}.get(declared.dtype, values.dtype)
    return torch.from_numpy(values.astype(wider))


def stored_bytes(declared: TensorType) -> int:
    """Bytes a constant of a type takes where it is stored."""
    return (math.prod(declared.sizes) * DTYPES[declared.dtype].bits + 7) // 8


def _immediate(where: str, declared: TensorType, tensor: Any) -> torch.Tensor | str:
    kind = tensor.WhichOneof("value")
    count = math.prod(declared.sizes)
    if kind == "bytes" and declared.dtype in DTYPES:
        raw = np.frombuffer(tensor.bytes.values, np.uint8)
        if len(raw) != stored_bytes(declared):
            raise InputError(where, f"holds {len(raw):,} bytes, {declared} takes {stored_bytes(declared):,}", AGAIN)
        return unpack(raw, declared)
    if declared.dtype not in LISTS.get(kind, ()):
        raise InputError(where, f"is {declared} and holds {kind}", AGAIN)
    values = getattr(tensor, kind).values
    if len(values) != count:
        raise InputError(where, f"holds {len(values):,} values, {declared} has {count:,}", AGAIN)
    if kind == "strings":
        if declared.shape:
            raise InputError(where, "a list of strings", "use another export")
        return str(values[0])
    least, most = SMALL.get(declared.dtype, (None, None))
    if least is not None and not all(least <= value <= most for value in values):
        raise InputError(where, f"holds a number that is no {declared.dtype}", AGAIN)
    return torch.tensor(list(values), dtype=DTYPES[declared.dtype].memory).reshape(declared.sizes)
