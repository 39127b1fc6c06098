"""One matrix of the graph as a recipe stores it: what it weighs is known from its name, shape and precision alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mobile_export.quantize.recipe import EMBEDDING, Precision


@dataclass(frozen=True)
class MatrixPlan:
    """One matrix: its graph name, shape, precision, and how many graph places use the one copy."""

    name: str
    shape: tuple[int, int]
    precision: Precision
    uses: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes (or floats), two 4-bit codes to a byte."""
        return self.parameters * self.precision.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales as ExecuTorch stores them: two a group, four a channel.

        A tied 4-bit table has them twice: the gather's operator reads float16, XNNPACK's bfloat16, and where they are
        the same value they are not the same bytes.
        """
        rows, columns = self.shape
        if self.precision.group_size:
            copies = 2 if self.name == EMBEDDING and self.uses == 2 else 1
            return rows * columns // self.precision.group_size * 2 * copies
        return 0 if self.precision.bits == 32 else rows * 4


def uses(name: str, schedule: Sequence[int], *, tied: bool) -> int:
    """How many places of the graph use a weight: every execution of its block; gather and head for a tied table."""
    if name == EMBEDDING:
        return 2 if tied else 1
    return list(schedule).count(int(name.split(".")[1])) if name.startswith("blocks.") else 1
