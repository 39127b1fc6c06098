"""Attention and its KV cache as a Core ML package keeps them: two states, one row of each for every execution that attends.

Everything a step's executions have in common (masks, temperatures) is computed once a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mobile_export.families.spec import DecoderSpec
from mobile_export.model.attention_rule import AttentionRule, alibi_bias, alibi_slopes, seen, temperature

UNSEEN = -4e4  # added to a score that is not attended to: finite in float16, and what a host adds comes on top


@dataclass(frozen=True)
class Step:
    """Where a call's tokens lie. What is an int here is a tensor while it is traced.

    length: how many tokens. begin: the cache slot of the first, end: after the last one.
    position: of the first token, int32 [1]. unused: slots before position 0, int32 [1].
    keys: how many slots are attended to: [1, end] of them, or all.
    mask: what the host adds to scores, [1, 1, 1, keys]; None where it has none.
    """

    length: int
    begin: int
    end: int
    position: torch.Tensor
    unused: torch.Tensor | None
    keys: int
    mask: torch.Tensor | None


class StatefulAttention(nn.Module):
    """What Decoder calls as attend(slot, query, key, value, start), over two caches [rows, kv_heads, context, head_dim].

    The caches are buffers of the module that is traced, by the names of the package's states, and only referred to here.
    """

    alibi: torch.Tensor | None
    caches: tuple[torch.Tensor, torch.Tensor]

    def __init__(self, spec: DecoderSpec, rules: Mapping[int, AttentionRule], keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.rules, self.row_of = dict(rules), {slot: row for row, slot in enumerate(rules)}
        self.heads, self.head_dim = spec.num_attention_heads, spec.head_dim
        self.groups = spec.num_attention_heads // spec.num_key_value_heads
        self.__dict__["caches"] = (keys, values)  # not registered a second time
        self.step: Step | None = None
        self._shared: dict[object, torch.Tensor] = {}
        context = keys.shape[2]
        self.table_of: dict[tuple[float, float], str] = {}
        for rule in rules.values():
            if rule.query_temperature is not None and rule.query_temperature not in self.table_of:
                self.table_of[rule.query_temperature] = name = f"temperature_{len(self.table_of)}"
                self.register_buffer(name, temperature(rule, torch.arange(context))[0, :, 0, 0])
        self.register_buffer("alibi", None)
        if spec.alibi == "falcon":
            bias = alibi_bias(next(iter(rules.values())), self.heads, torch.arange(context))
            self.alibi = bias[:, 0]
        elif spec.alibi == "bloom":
            self.alibi = torch.tensor(alibi_slopes(self.heads)).view(self.heads, 1, 1)

    def begin(self, step: Step) -> None:
        """Take up a step; what the last one's executions had in common is dropped."""
        self.step = step
        self._shared.clear()

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        """query [1, T, heads, head_dim], key and value [1, T, kv_heads, head_dim] -> [1, T, heads, head_dim]."""
        assert self.step is not None
        rule, row, step = self.rules[slot], self.row_of[slot], self.step
        for cache, fresh in zip(self.caches, (key, value), strict=True):
            cache[row : row + 1, :, step.begin : step.end, :] = fresh.transpose(1, 2)
        keys, values = (cache[row : row + 1, :, : step.keys, :] for cache in self.caches)
        if rule.query_temperature is not None:
            query = query * self._heat(rule.query_temperature)
        factor = rule.scale * math.sqrt(self.head_dim)
        if not math.isclose(factor, 1, rel_tol=1e-12):
            query = query * factor  # the operator divides by sqrt(head_dim), always
        length, kv_heads = step.length, keys.shape[1]
        # The queries of a group as rows of one: nothing of the cache is copied, as repeating its heads would.
        grouped = query.view(1, length, kv_heads, self.groups, self.head_dim).permute(0, 2, 3, 1, 4)
        grouped = grouped.reshape(1, kv_heads, self.groups * length, self.head_dim)
        if rule.softcap is None:
            attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._mask(rule))
        else:
            scores = (grouped * self.head_dim**-0.5) @ keys.transpose(2, 3)
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
            attended = (scores + self._mask(rule)).softmax(dim=-1) @ values
        attended = attended.view(1, kv_heads, self.groups, length, self.head_dim).permute(0, 3, 1, 2, 4)
        return attended.reshape(1, length, self.heads, self.head_dim)

    def _mask(self, rule: AttentionRule) -> torch.Tensor:
        """What is added to the scores of grouped queries: [1, 1, groups * T, keys], or with ALiBi [1, kv_heads, ...]."""
        return self._once(("mask", rule.window, rule.chunk), lambda: self._grouped(self._added(rule)))

    def _grouped(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask [1, 1 or heads, T, keys] for every row of grouped queries."""
        if self.alibi is None:
            return torch.cat([mask] * self.groups, dim=2)
        return mask.reshape(1, self.heads // self.groups, self.groups * mask.shape[2], mask.shape[3])

    def _added(self, rule: AttentionRule) -> torch.Tensor:
        step = self._taken()
        rows, keys = self._rows(), torch.arange(step.keys)
        if step.unused is not None:
            keys = keys - step.unused
        visible = seen(rule, rows, keys)
        if step.unused is not None:
            visible = visible & (keys >= 0)[None]
        # A product, since coremltools gives a select of scalars no shape of its own.
        added = (~visible).float()[None, None] * UNSEEN
        if step.mask is not None:
            added = added + step.mask
        if self.alibi is not None and rule.alibi == "bloom":
            added = added + self.alibi * (keys[None] - rows[:, None]).float()
        elif self.alibi is not None:
            added = added + (self.alibi[:, None, keys.clamp(min=0)] - self.alibi[:, rows, None])
        return added

    def _heat(self, temperature: tuple[float, float]) -> torch.Tensor:
        table = self.get_buffer(self.table_of[temperature])
        return self._once(("temperature", temperature), lambda: table[self._rows()][None, :, None, None])

    def _rows(self) -> torch.Tensor:
        """Positions of the call's tokens, int32 [T]."""
        step = self._taken()
        return self._once("rows", lambda: step.position + torch.arange(step.length))

    def _taken(self) -> Step:
        assert self.step is not None, "begin() comes first"
        return self.step

    def _once(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]
