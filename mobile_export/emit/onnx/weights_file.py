"""model.onnx.data while it is written: every distinct payload once, in a place of its own, streamed.

The graph names ranges of this file, and two names may name one range: so a tied table is stored once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector load


@dataclass(frozen=True)
class Range:
    """Where a payload lies in the file."""

    offset: int
    length: int


class WeightsFile:
    """An open model.onnx.data. `parts` counts its bytes by the part of the model they are billed to."""

    def __init__(self, path: Path) -> None:
        """Create the file, empty.

        Raises:
            OSError: it cannot be created.
        """
        self.path = path
        self.parts: Counter[str] = Counter()
        self._file = path.open("wb")
        self._size = 0
        self._ranges: dict[bytes, Range] = {}

    def add(self, values: np.ndarray, part: str) -> Range:
        """Write values, row-major; what is there already, byte for byte, is not written again.

        Raises:
            OSError: the disk is full.
        """
        data = np.ascontiguousarray(values)
        raw = data.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(raw).digest()
        if digest not in self._ranges:
            padding = -self._size % ALIGNMENT
            self._file.write(bytes(padding))
            self._file.write(raw)
            self._ranges[digest] = Range(self._size + padding, raw.nbytes)
            self._size += padding + raw.nbytes
            self.parts[part] += raw.nbytes
            self.parts["graph"] += padding
        return self._ranges[digest]

    def close(self) -> int:
        """Finish the file; gives its size in bytes.

        Raises:
            OSError: the disk is full.
        """
        self._file.close()
        return self._size
