"""Types and constants of an ML program (MIL.proto) -> dtypes, shapes and tensors.

A tensor in memory has the dtype that MEMORY gives for its declared one: integers narrower than a byte take a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.package import AGAIN

# MIL.proto, enum DataType: those a tensor of a program may have here
DTYPES = {1: "bool", 2: "string", 10: "float16", 11: "float32", 21: "int8", 22: "int16", 23: "int32", 25: "int4"} | {
    31: "uint8", 32: "uint16", 35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3"
}  # fmt: skip
BITS = {"bool": 8, "float16": 16, "float32": 32, "int8": 8, "int16": 16, "int32": 32, "int4": 4} | {
    "uint8": 8, "uint16": 16, "uint4": 4, "uint2": 2, "uint1": 1, "uint6": 6, "uint3": 3
}  # fmt: skip
NUMPY = {"bool": "|b1", "float16": "<f2", "float32": "<f4", "int8": "|i1", "int16": "<i2", "int32": "<i4"} | {
    "uint8": "|u1", "uint16": "<u2"
}  # fmt: skip
MEMORY = {"bool": torch.bool, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8} | {
    "int16": torch.int16, "int32": torch.int32, "uint8": torch.uint8, "uint16": torch.int32, "int4": torch.int8
} | dict.fromkeys(("uint1", "uint2", "uint3", "uint4", "uint6"), torch.uint8)  # fmt: skip
LARGEST = 1 << 29  # elements of one value: four times the largest embedding table we know
# Which dtypes each of TensorValue's lists holds; narrow numbers are mostly written as bytes.
LISTS = {"floats": ("float32",), "ints": ("int32", "int16", "uint16"), "bools": ("bool",), "strings": ("string",)}


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
    if tensor.dataType not in DTYPES:
        raise InputError(where, f"has a dtype we do not know (number {tensor.dataType})", "use another export")
    sizes = [dimension.constant.size if dimension.HasField("constant") else None for dimension in tensor.dimensions]
    if tensor.rank not in (len(sizes), 0):
        raise InputError(where, f"is said to have {tensor.rank} dimensions and lists {len(sizes)}", AGAIN)
    if math.prod(size for size in sizes if size is not None) > LARGEST:
        raise InputError(where, f"would have {sizes} elements, more than {LARGEST:,}", AGAIN)
    return TensorType(DTYPES[tensor.dataType], tuple(sizes))


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
    """Bytes as they are stored -> the tensor, dtype by MEMORY. Narrow integers fill bytes from the lowest bit on.

    Args:
        raw: uint8, exactly `stored_bytes(declared)`.
    """
    shape = declared.sizes
    count, bits = math.prod(shape), BITS[declared.dtype]
    if bits < 8:
        width = 3 if bits in (3, 6) else 1  # bytes after which values and bytes begin together again
        padded = np.concatenate([raw, np.zeros(-len(raw) % width, np.uint8)]).reshape(-1, width)
        words = (padded.astype(np.uint32) << np.arange(0, 8 * width, 8, dtype=np.uint32)).sum(1) if width > 1 else padded[:, 0]
        lanes = np.arange(0, 8 * width, bits, dtype=words.dtype)
        values = ((words[:, None] >> lanes) & words.dtype.type((1 << bits) - 1)).astype(np.uint8).reshape(-1)[:count]
        if declared.dtype == "int4":
            values = ((values ^ 8).astype(np.int8) - 8).astype(np.int8)  # two's complement
        return torch.from_numpy(values.reshape(shape))
    values = raw.view(NUMPY[declared.dtype]).reshape(shape)
    if declared.dtype == "bool":
        values = raw.reshape(shape) != 0
    return torch.from_numpy(values.astype(np.int32) if declared.dtype == "uint16" else values.copy())


def stored_bytes(declared: TensorType) -> int:
    """Bytes a constant of a type takes where it is stored."""
    return (math.prod(declared.sizes) * BITS[declared.dtype] + 7) // 8


def _immediate(where: str, declared: TensorType, tensor: Any) -> torch.Tensor | str:
    kind = tensor.WhichOneof("value")
    count = math.prod(declared.sizes)
    if kind == "bytes" and declared.dtype in BITS:
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
    return torch.tensor(list(values), dtype=MEMORY[declared.dtype]).reshape(declared.sizes)
