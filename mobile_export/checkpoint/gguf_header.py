"""What a .gguf file says before its data: metadata and where each tensor lies, every length checked first.

gguf's own GGUFReader is not used: it believes every length in the file (an array that claims 2**60 items fills the
memory), and it makes a numpy array per token, which is 1.7 s and 170 MB for the vocabulary of a 98 MB file. Block
sizes and dequantization are gguf's.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobile_export.errors import InputError
from mobile_export.units import counted

VERSIONS = (2, 3)
# value type -> struct code; 8 is a string and 9 an array
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
FETCH_AGAIN = "the download or copy is incomplete or damaged: fetch it again"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as the file stores it.

    shape: (out_features, in_features); the file writes them the other way round.
    type: "F32", "F16", "Q4_1", ... as gguf's GGMLQuantizationType spells it.
    begin, length: bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    begin: int
    length: int


@dataclass(frozen=True)
class GgufHeader:
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_header(path: Path) -> GgufHeader:
    """Parse and check everything before the data.

    Raises:
        InputError: not GGUF, a version or type we do not know, or lengths that do not fit the file.
    """
    file_bytes = path.stat().st_size
    if file_bytes < 24:
        raise InputError(path.name, f"{counted(file_bytes, 'byte')}: too short to be GGUF", FETCH_AGAIN)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        cursor = _Cursor(path.name, content)
        magic, version = content[:4], struct.unpack_from("<I", content, 4)[0]
        if magic != b"GGUF":
            raise InputError(path.name, f"begins with {magic!r}, not GGUF", "check what it is")
        if version not in VERSIONS:
            kind = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise InputError(path.name, f"is {kind} GGUF; versions 2 and 3 are read", "convert it with a newer llama.cpp")
        cursor.position = 8
        tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = cursor.string()
            if key in metadata:
                raise InputError(path.name, f"metadata key {key!r} twice", FETCH_AGAIN)
            metadata[key] = cursor.value(cursor.scalar("I"))
        described = [_describe(cursor) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise InputError(path.name, f"general.alignment is {alignment!r}, not a power of two", FETCH_AGAIN)
        data_begin = cursor.position + -cursor.position % alignment
    tensors = [GgufTensor(name, shape, kind, data_begin + offset, length) for name, shape, kind, offset, length in described]
    _check_layout(path.name, tensors, file_bytes)
    return GgufHeader(metadata, tuple(tensors))


class _Cursor:
    """Reads forward through the file; a length that leads past its end is an InputError, not an allocation."""

    def __init__(self, where: str, content: mmap.mmap) -> None:
        self.where, self.content, self.position = where, content, 0

    def take(self, length: int) -> int:
        """The position of `length` bytes, which are then behind us."""
        begin, left = self.position, len(self.content) - self.position
        if length > left:
            raise InputError(
                self.where,
                f"needs {counted(length, 'byte')} at byte {begin:,}, the file has {left:,} left",
                FETCH_AGAIN,
            )
        self.position += length
        return begin

    def scalar(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.content, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        begin = self.take(self.scalar("Q"))
        try:
            return self.content[begin : self.position].decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(self.where, f"text at byte {begin:,} is not UTF-8", FETCH_AGAIN) from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise InputError(self.where, f"value of unknown type {kind} at byte {self.position:,}", FETCH_AGAIN)
        return self.scalar(SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == STRING:  # every string has a length of its own, so a count too large runs into the end of the file
            return [self.string() for _ in range(count)]
        if kind not in SCALARS:  # the format allows arrays of arrays; no known key holds one
            raise InputError(self.where, f"array of unknown type {kind} at byte {self.position:,}", FETCH_AGAIN)
        begin = self.take(count * struct.calcsize(SCALARS[kind]))
        return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.content, begin))


def _describe(cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int, int]:
    """Name, shape, type, offset in the data part, and bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.string()
    where = f"{cursor.where}: {name}"
    dimensions = cursor.scalar("I")
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise InputError(where, f"has {dimensions} dimensions", FETCH_AGAIN)
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(dimensions)]))
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    if 0 in shape or math.prod(shape) >= 2**63:  # torch counts in 63 bits
        raise InputError(where, f"has shape {shape}", FETCH_AGAIN)
    if kind not in list(GGMLQuantizationType):
        raise InputError(where, f"has quantization type {kind}, unknown to the installed gguf", "pip install --upgrade gguf")
    block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if shape[-1] % block_values:
        raise InputError(where, f"{shape[-1]} inputs do not divide into blocks of {block_values}", FETCH_AGAIN)
    return name, shape, GGMLQuantizationType(kind).name, offset, math.prod(shape) // block_values * block_bytes


def _check_layout(where: str, tensors: list[GgufTensor], file_bytes: int) -> None:
    """Each name once, each tensor inside the file, no two over the same bytes."""
    names = {tensor.name for tensor in tensors}
    if len(names) < len(tensors):
        raise InputError(where, f"{len(tensors) - len(names)} tensor names occur twice", FETCH_AGAIN)
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.begin):
        if tensor.begin < end:
            raise InputError(f"{where}: {tensor.name}", "overlaps the tensor before it", FETCH_AGAIN)
        end = tensor.begin + tensor.length
    if end > file_bytes:
        raise InputError(where, f"tensors need {counted(end, 'byte')}, the file has {file_bytes:,}", FETCH_AGAIN)
