"""Bytes of a file as a tensor, mapped: pages are touched when used and given back when the tensor is dropped."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.errors import InputError

if TYPE_CHECKING:
    import torch


def map_bytes(path: Path, begin: int, length: int) -> torch.Tensor:
    """uint8, (length,), over `path[begin : begin + length]`.

    Only this window is mapped, copy-on-write: a private map of a whole 14 GB file is refused by Linux on a machine
    with less memory than that, even if it is never written to.

    Raises:
        InputError: the file is gone or shorter than when it was opened.
    """
    import torch

    if length == 0:  # mmap refuses an empty window
        return torch.empty(0, dtype=torch.uint8)
    start = begin - begin % mmap.ALLOCATIONGRANULARITY
    try:
        with path.open("rb") as file:
            window = mmap.mmap(file.fileno(), begin - start + length, access=mmap.ACCESS_COPY, offset=start)
    except (OSError, ValueError) as error:
        raise InputError(path.name, f"changed since it was opened ({error})", "run the command again") from None
    return torch.frombuffer(window, dtype=torch.uint8, count=length, offset=begin - start)


def map_values(path: Path, begin: int, length: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The same bytes as values of `dtype`, `shape`; copied where the file does not align them."""
    raw = map_bytes(path, begin, length)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(shape)
