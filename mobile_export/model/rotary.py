"""Rotary position embedding: tables of every position, and the rotation. Source: arXiv:2104.09864."""

from __future__ import annotations

import torch
from torch import nn

from mobile_export.families.spec import RopeSpec


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False) -> torch.Tensor:
    """Rotate the first channels of every head; those beyond the tables' width pass through.

    Channel i goes with i + rotated / 2, in the half-split order of Hugging Face's weights, or 2i with 2i + 1.
    x [1, T, heads, head_dim]; cos, sin [1, T, 1, rotated], sin signed.
    """
    rotated = cos.shape[-1]
    if rotated < x.shape[-1]:
        turned = rotate(x[..., :rotated], cos, sin, interleaved=interleaved)
        return torch.cat((turned, x[..., rotated:]), dim=-1)
    if interleaved:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        partner = torch.cat((second, first), dim=-1)
    return x * cos + partner * sin


class RotaryTables(nn.Module):
    """cos and sin of every position for every rotated channel; sin is negated for the first channel of a pair."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, rope: RopeSpec, context: int) -> None:
        super().__init__()
        angle = torch.outer(torch.arange(context, dtype=torch.float32), torch.tensor(rope.inverse_frequencies))
        cos, sin = angle.cos() * rope.attention_factor, angle.sin() * rope.attention_factor
        pairs = ((cos, cos), (-sin, sin))
        if rope.interleaved:
            cos, sin = (torch.stack(pair, dim=-1).flatten(-2) for pair in pairs)
        else:
            cos, sin = (torch.cat(pair, dim=-1) for pair in pairs)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows from `start` on, each [1, T, 1, rotated]."""
        return self.cos.narrow(0, start, length)[None, :, None], self.sin.narrow(0, start, length)[None, :, None]
