"""A weight file of an ML program: entries of 64 bytes, each before the bytes of one constant.

Layout (coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp): a header of 64 bytes (uint32 count, uint32 version 2),
then entries (uint32 0xDEADBEEF, uint32 dtype, uint64 bytes, uint64 offset of the data, uint64 padding in bits), all at
multiples of 64 bytes. A constant names the offset of its entry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.package import AGAIN
from mobile_export.verify.mlprogram.values import TensorType, stored_bytes, unpack

HEADER, ENTRY = struct.Struct("<II56x"), struct.Struct("<IIQQQ32x")
VERSION, SENTINEL = 2, 0xDEADBEEF
DTYPES = {1: "float16", 2: "float32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1"} | {
    10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32"
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What lies in the file for one constant."""

    dtype: str
    offset: int  # of its bytes
    bytes: int


class WeightFile:
    """A mapped weight file. where: for errors."""

    def __init__(self, where: str, data: memoryview) -> None:
        """Check the header.

        Raises:
            InputError: shorter than its header, or of another version.
        """
        self.where, self.data = where, data
        if len(data) < HEADER.size:
            raise InputError(where, f"is cut off after {len(data)} bytes", AGAIN)
        self.count, version = HEADER.unpack_from(data)
        if version != VERSION:
            raise InputError(where, f"is no weight file of version {VERSION} (found {version})", AGAIN)

    def entry(self, offset: int) -> Entry:
        """The entry at an offset.

        Raises:
            InputError: no entry there, or its bytes leave the file.
        """
        if offset < HEADER.size or offset + ENTRY.size > len(self.data):
            raise InputError(self.where, f"is cut off: no entry at byte {offset:,} of {len(self.data):,}", AGAIN)
        sentinel, number, size, begin, _ = ENTRY.unpack_from(self.data, offset)
        if sentinel != SENTINEL or number not in DTYPES:
            raise InputError(self.where, f"has no entry at byte {offset:,}", AGAIN)
        if begin < offset + ENTRY.size or begin + size > len(self.data):
            what = f"is cut off: {size:,} bytes at byte {begin:,} of {len(self.data):,}"
            raise InputError(self.where, what, AGAIN)
        return Entry(DTYPES[number], begin, size)

    def read(self, where: str, offset: int, declared: TensorType) -> torch.Tensor:
        """The constant whose entry is at an offset: a copy, dtype by values.DTYPES.

        Args:
            where: the constant, for errors.
        Raises:
            InputError: no entry there, or one of another dtype or size than declared.
        """
        entry = self.entry(offset)
        if (entry.dtype, entry.bytes) != (declared.dtype, stored_bytes(declared)):
            found = f"{entry.bytes:,} bytes of {entry.dtype} at byte {offset:,} of {self.where}"
            raise InputError(where, f"is {declared}, {stored_bytes(declared):,} bytes, and finds {found}", AGAIN)
        raw = np.frombuffer(self.data[entry.offset : entry.offset + entry.bytes], np.uint8)
        return unpack(raw, declared)
