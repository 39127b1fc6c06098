"""What lies between the token table and the first block, as the .pte runs it.

A norm or a projection is a piece of its own, one delegate, and takes the rest with it. Where there is neither, a factor
and a position's row are one operator each.
"""

from __future__ import annotations

import torch
from torch import nn

from mobile_export.emit.executorch.embedding import gather
from mobile_export.emit.executorch.pieces import Weight
from mobile_export.families.spec import DecoderSpec
from mobile_export.model.norms import stream_norm


class EntryPiece(nn.Module):
    """Rows of the token table [1, T, table_size], and of the position table [1, T, hidden] if any -> [1, T, hidden]."""

    factor: torch.Tensor

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        hidden, table = spec.hidden_size, spec.table_size
        self.scaled = spec.embedding_scale != 1
        if self.scaled:
            self.register_buffer("factor", torch.full((1,), spec.embedding_scale, device="cpu"))
        self.project: nn.Module = nn.Identity() if table == hidden else nn.Linear(table, hidden, bias=False)
        self.norm: nn.Module = stream_norm(spec) if spec.embedding_norm else nn.Identity()

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        x = self.project(x * self.factor if self.scaled else x)
        return self.norm(x if positions is None else x + positions)


class PteEntry(nn.Module):
    """Entry: called with rows of the token table and the position of the first.

    positions: the position table at its precision. piece: a lowered EntryPiece, where the spec needs one.
    """

    rows: torch.Tensor

    def __init__(self, spec: DecoderSpec, context: int, positions: Weight | None, piece: nn.Module | None) -> None:
        super().__init__()
        self.scale, self.piece = spec.embedding_scale, piece
        self.positions = None if positions is None else gather(positions)
        if positions is not None:
            self.register_buffer("rows", torch.arange(context) + spec.position_offset)

    def forward(self, x: torch.Tensor, start: int) -> torch.Tensor:
        rows = () if self.positions is None else (self.positions(self.rows.narrow(0, start, x.shape[1])[None]),)
        if self.piece is not None:
            return self.piece(x, *rows)
        if self.scale != 1:
            x = x * self.scale
        return x + rows[0] if rows else x


def needs_piece(spec: DecoderSpec) -> bool:
    """Whether more than a factor and an addition lies there."""
    return spec.embedding_norm or spec.table_size != spec.hidden_size
