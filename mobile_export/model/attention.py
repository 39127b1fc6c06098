"""Attention in plain float32 PyTorch: what the runtimes' own operators are held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PlainAttention(nn.Module):
    """Causal grouped-query attention over one growing cache per slot.

    Call `forget()` before a new sequence. With `start` 0 a slot is refilled from the beginning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def forget(self) -> None:
        """Empty every slot."""
        self.cache.clear()

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        """query [1, T, heads, head_dim], key and value [1, T, kv_heads, head_dim] -> [1, T, heads, head_dim].

        Source: arXiv:1706.03762 section 3.2.1; grouped as in arXiv:2305.13245.
        """
        if start:
            past_key, past_value = self.cache[slot]
            key = torch.cat((past_key[:, :start], key), dim=1)
            value = torch.cat((past_value[:, :start], value), dim=1)
        self.cache[slot] = (key, value)
        groups = query.shape[2] // key.shape[2]
        rows = torch.arange(start, start + query.shape[1])[:, None]
        seen = torch.arange(key.shape[1])[None] <= rows
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2).repeat_interleave(groups, dim=1),
            value.transpose(1, 2).repeat_interleave(groups, dim=1),
            attn_mask=seen,
        )
        return attended.transpose(1, 2)
