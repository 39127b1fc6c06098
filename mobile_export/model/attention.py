"""Attention in plain float32 PyTorch: what the runtimes' own operators are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mobile_export.model.attention_rule import AttentionRule, alibi_bias, seen, temperature


class PlainAttention(nn.Module):
    """Causal grouped-query attention over one growing cache per slot, each slot under its own rule.

    Call `forget()` before a new sequence. With `start` 0 a slot is refilled from the beginning.
    """

    def __init__(self, rules: Sequence[AttentionRule]) -> None:
        super().__init__()
        self.rules = tuple(rules)
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def forget(self) -> None:
        """Empty every slot."""
        self.cache.clear()

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        """query [1, T, heads, head_dim], key and value [1, T, kv_heads, head_dim] -> [1, T, heads, head_dim].

        Source: arXiv:1706.03762 section 3.2.1; grouped as in arXiv:2305.13245.
        """
        rule = self.rules[slot]
        if start:
            past_key, past_value = self.cache[slot]
            key = torch.cat((past_key[:, :start], key), dim=1)
            value = torch.cat((past_value[:, :start], value), dim=1)
        self.cache[slot] = (key, value)
        rows, keys = torch.arange(start, start + query.shape[1]), torch.arange(key.shape[1])
        if rule.query_temperature:
            query = query * temperature(rule, rows)
        groups = query.shape[2] // key.shape[2]
        key, value = (x.transpose(1, 2).repeat_interleave(groups, dim=1) for x in (key, value))
        scores = query.transpose(1, 2) @ key.transpose(2, 3) * rule.scale
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        if rule.alibi != "none":
            scores = scores + alibi_bias(rule, query.shape[2], keys)
        scores = scores.masked_fill(~seen(rule, rows, keys), -torch.inf)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2)
