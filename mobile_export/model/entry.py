"""What lies between the token table and the first block, in the families where anything does."""

from __future__ import annotations

import torch
from torch import nn

from mobile_export.families.spec import DecoderSpec
from mobile_export.model.norms import stream_norm


class Entry(nn.Module):
    """Rows of the token table [1, T, table_size] -> residual stream [1, T, hidden].

    Scaled, projected to the stream's width, moved by the position's own row, normed: whichever a family has.
    positions: called with rows int64 [1, T].
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.scale, self.offset = spec.embedding_scale, spec.position_offset
        hidden, table = spec.hidden_size, spec.table_size
        self.project: nn.Module | None = None if table == hidden else nn.Linear(table, hidden, bias=False)
        self.norm: nn.Module | None = stream_norm(spec) if spec.embedding_norm else None
        self.positions: nn.Module | None = nn.Embedding(spec.learned_positions, hidden) if spec.learned_positions else None

    def forward(self, x: torch.Tensor, start: int) -> torch.Tensor:
        if self.scale != 1:
            x = x * self.scale
        if self.project is not None:
            x = self.project(x)
        if self.positions is not None:
            x = x + self.positions(torch.arange(x.shape[1])[None] + (start + self.offset))
        return x if self.norm is None else self.norm(x)


def has_entry(spec: DecoderSpec) -> bool:
    """Whether the table's rows are not yet the residual stream."""
    return bool(spec.embedding_scale != 1 or spec.embedding_size or spec.learned_positions or spec.embedding_norm)
