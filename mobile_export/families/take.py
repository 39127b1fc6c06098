"""How a weight of the graph is taken out of one checkpoint tensor: as data, so that a map is tested without weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of every `period` rows, in their order; period None: of all rows.

    >>> Rows(0, 2, period=6).count(12)  # query of two heads whose file has each head's query, key and value in turn
    4
    """

    start: int
    stop: int
    period: int | None = None

    def count(self, rows: int) -> int:
        """How many of `rows` rows are taken."""
        return (self.stop - self.start) * (rows // (self.period or rows))


@dataclass(frozen=True)
class Take:
    """The steps from a stored tensor to (a part of) a graph weight, in the order of the fields.

    transposed: the file holds (in_features, out_features), as GPT-2's Conv1D does.
    flattened: the file holds (1, 1, n) where the graph has (n,).
    value: "plus_one": 1 + w in float32 (Gemma's norms); "minus_exp": -exp(w) (RWKV's decay).
    """

    transposed: bool = False
    flattened: bool = False
    rows: Rows | None = None
    value: Literal["stored", "plus_one", "minus_exp"] = "stored"

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is taken out of a tensor of shape `stored`."""
        shape = stored[::-1] if self.transposed else stored
        if self.flattened:
            shape = (math.prod(shape),)
        return (self.rows.count(shape[0]), *shape[1:]) if self.rows else shape

    def of(self, stored: torch.Tensor) -> torch.Tensor:
        """Take it out of a float32 tensor; `stored` is not written into."""
        import torch

        taken = stored.t() if self.transposed else stored
        if self.flattened:
            taken = taken.reshape(-1)
        if self.rows:
            period = self.rows.period or taken.shape[0]
            taken = taken.unflatten(0, (-1, period))[:, self.rows.start : self.rows.stop].flatten(0, 1)
        if self.value != "stored":
            taken = 1 + taken if self.value == "plus_one" else -torch.exp(taken)
        return taken.contiguous()
