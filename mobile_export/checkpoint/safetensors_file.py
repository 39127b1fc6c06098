"""One .safetensors file: eight bytes of header length, a JSON header, then the tensors one after another.

The header is checked whole before a tensor is offered: a truncated download, overlapping tensors and a shape that
does not fit its bytes are told apart here, not discovered as wrong numbers later.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobile_export.checkpoint.contents import StoredTensor
from mobile_export.checkpoint.dtypes import ITEM_BYTES, torch_dtype
from mobile_export.checkpoint.mapped import map_bytes, map_values
from mobile_export.checkpoint.strict_json import DAMAGED, parse_object
from mobile_export.errors import InputError
from mobile_export.units import counted

MAX_HEADER_BYTES = 100_000_000  # the format's own limit: a hostile length must not become an allocation
ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def read_safetensors(path: Path) -> list[StoredTensor]:
    """Describe every tensor of the file, in file order, then the aliases `save_model` noted in the metadata.

    Raises:
        InputError: the file is truncated, its header is damaged, or a dtype is not supported.
    """
    header, data_begin, file_bytes = _header(path)
    aliases = _aliases(path, header.pop("__metadata__", {}))
    spans = sorted((_span(path, name, entry), name) for name, entry in header.items())
    end = 0
    for (begin, next_end), name in spans:
        if begin != end:
            problem = f"overlaps the tensor before it by {counted(end - begin, 'byte')}"
            if begin > end:
                problem = f"leaves {counted(begin - end, 'byte')} before it unused"
            raise InputError(f"{path.name}: {name}", problem, DAMAGED)
        end = next_end
    if data_begin + end != file_bytes:
        raise InputError(
            path.name,
            f"tensors need {counted(data_begin + end, 'byte')}, the file has {file_bytes:,}",
            "the download or copy is incomplete: fetch it again" if data_begin + end > file_bytes else DAMAGED,
        )
    tensors = {name: _describe(path, name, header[name], data_begin + begin) for (begin, _), name in spans}
    # The kept name stands for both, so both have its storage.
    dropped = [
        replace(tensors[kept], name=name, alias_of=kept)
        for name, kept in aliases.items()
        if name not in tensors and kept in tensors
    ]
    return [*tensors.values(), *dropped]


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says beside its tensors.

    Raises:
        InputError: the header is damaged.
    """
    return _aliases(path, _header(path)[0].get("__metadata__", {}))


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, the offset of the first data byte, and the size of the file."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length_bytes = file.read(8)
        if len(length_bytes) < 8:
            raise InputError(path.name, f"{counted(file_bytes, 'byte')}: too short to be safetensors", DAMAGED)
        (length,) = struct.unpack("<Q", length_bytes)
        if length > MAX_HEADER_BYTES:
            raise InputError(
                path.name, f"header of {counted(length, 'byte')}: this is not a safetensors file", "check what it is"
            )
        if length > file_bytes - 8:
            raise InputError(
                path.name,
                f"header needs {counted(length, 'byte')}, the file has {file_bytes - 8:,} after its length",
                "the download or copy is incomplete: fetch it again",
            )
        return parse_object(f"{path.name}: header", file.read(length)), 8 + length, file_bytes


def _aliases(path: Path, metadata: object) -> dict[str, str]:
    """Every string pair of `__metadata__`; those that name a tensor are aliases, the rest are remarks."""
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise InputError(f"{path.name}: header", "__metadata__ does not map strings to strings", DAMAGED)
    return metadata


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Begin and end in the data part, after checking them against dtype and shape."""
    where = f"{path.name}: {name}"
    if not isinstance(entry, dict) or set(entry) != ENTRY_KEYS:
        raise InputError(where, "header entry is not {dtype, shape, data_offsets}", DAMAGED)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InputError(
            where,
            f"stored as {dtype}, which is not supported",
            "convert the checkpoint to BF16, F16 or F32 (e.g. model.to(torch.bfloat16).save_pretrained)",
        )
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise InputError(where, "shape or data_offsets is not a list of counts", DAMAGED)
    begin, end = offsets
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != needed:
        raise InputError(
            where,
            f"shape {tuple(shape)} in {dtype} needs {counted(needed, 'byte')}, data_offsets give {end - begin:,}",
            DAMAGED,
        )
    return begin, end


def _is_counts(value: object) -> bool:
    """A list of integers a tensor could have; bool is an int to Python, and torch counts strides in 63 bits."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        return False
    return math.prod(item or 1 for item in value) < 2**63


def _describe(path: Path, name: str, entry: dict[str, Any], begin: int) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    length = math.prod(shape) * ITEM_BYTES[dtype]
    # An empty tensor begins where its neighbour does: its name keeps the two apart.
    storage = (str(path), begin, length, shape, dtype) if length else (str(path), name)
    return StoredTensor(
        name,
        shape,
        dtype,
        f"{path.name}: {name}",
        storage,
        read=lambda: map_values(path, begin, length, torch_dtype(dtype), shape),
        raw=lambda: map_bytes(path, begin, length),
    )
