"""Attention and KV cache as the .pte runs them: one cache slot per execution, whatever blocks are shared.

Each module is what `Decoder` calls as `attend(slot, query, key, value, start)`. Caches are mutable buffers of the program,
[1, rows, kv_heads, head_dim]; the runtime starts them at zero. A slot with less rows than the context is a ring: a position
lies in the row that is its remainder, and a text can be taken up where it ended or begun anew, not at a position before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers torch.ops.llama
from torch import nn

from mobile_export.families.spec import DecoderSpec
from mobile_export.model.attention_rule import AttentionRule, alibi_bias, seen, temperature

UNSEEN = -1e9  # added to a score that is not attended to: finite, since a row may see nothing of a run of keys


class SlotAttention(nn.Module):
    """What the attentions here have in common: the rule of every slot, and what is computed once a step for all of them.

    rules: slot -> rule, of the executions that attend. rows: slot -> rows, fewer than the context only under a rule that
        sees less of it.
    """

    positions: torch.Tensor

    def __init__(self, spec: DecoderSpec, rules: Mapping[int, AttentionRule], rows: Mapping[int, int], context: int) -> None:
        super().__init__()
        self.rules, self.rows = {slot: _within(rule, context) for slot, rule in rules.items()}, rows
        self.usual_scale, self.context = spec.head_dim**-0.5, context
        self._shared: dict[object, torch.Tensor] = {}
        self.table_of: dict[tuple[float, float], str] = {}
        for rule in self.rules.values():
            if rule.query_temperature is not None and rule.query_temperature not in self.table_of:
                self.table_of[rule.query_temperature] = name = f"temperature_{len(self.table_of)}"
                self.register_buffer(name, temperature(rule, torch.arange(context)), persistent=False)
        if any(rule.window is not None or rule.chunk is not None for rule in self.rules.values()):
            self.register_buffer("positions", torch.arange(context), persistent=False)

    def forget(self) -> None:
        """Drop what the executions of one step share: a step begins without it."""
        self._shared.clear()

    def scale(self, rule: AttentionRule) -> float | None:
        """What the runtime's operators are told of a rule's scale: nothing where it is the one they assume."""
        return None if rule.scale == self.usual_scale else rule.scale

    def heated(self, rule: AttentionRule, query: torch.Tensor, start: int) -> torch.Tensor:
        """The query, multiplied with what its rule has for its positions."""
        if rule.query_temperature is None:
            return query
        table = self.get_buffer(self.table_of[rule.query_temperature])
        return query * self._once(("temperature", rule.query_temperature), lambda: table.narrow(1, start, query.shape[1]))

    def mask(self, slot: int, start: int, length: int) -> torch.Tensor | None:
        """What is added to a score, [T, rows], under a rule that sees less than the whole past."""
        rule, rows = self.rules[slot], self.rows[slot]
        if rule.window is None and rule.chunk is None:
            return None
        if rows == self.context:
            return self._once(("mask", rule.window, rule.chunk), lambda: unseen(rule, self.positions, start, length))
        return self._once(("mask", rule.window, rule.chunk), lambda: unseen_in_ring(rule, rows, self.positions, start, length))

    def places(self, slot: int, start: int, length: int) -> torch.Tensor | None:
        """The rows of a ring that positions from `start` on are written to, int64 [1, T]; None where they are the positions."""
        rows = self.rows[slot]
        if rows == self.context:
            return None
        return self._once(("places", rows), lambda: torch.remainder(self.positions.narrow(0, start, length), rows)[None])

    def _once(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


class CustomAttention(SlotAttention):
    """The runtime's own `llama::update_cache` and `llama::custom_sdpa`, float32 cache.

    `custom_sdpa` is causal by itself, or takes a float mask over the whole cache and is not.
    """

    def __init__(self, spec: DecoderSpec, rules: Mapping[int, AttentionRule], rows: Mapping[int, int], context: int) -> None:
        super().__init__(spec, rules, rows, context)
        for slot in rules:
            for name in ("key", "value"):
                self.register_buffer(f"{name}_{slot}", torch.zeros(1, rows[slot], spec.num_key_value_heads, spec.head_dim))

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        rule, keys, values = self.rules[slot], getattr(self, f"key_{slot}"), getattr(self, f"value_{slot}")
        places = self.places(slot, start, query.shape[1])
        keep(key, keys, start, places)
        keep(value, values, start, places)
        query, mask = self.heated(rule, query, start), self.mask(slot, start, query.shape[1])
        return torch.ops.llama.custom_sdpa(query, keys, values, start, mask, 0.0, mask is None, self.scale(rule))


class CustomInt8Attention(SlotAttention):
    """`llama::custom_quantized_sdpa` over an int8 cache: one scale and zero point per token and head.

    Query, key and value are quantized to the full int8 range as they come (asymmetric), so a cached row is
    head_dim + 5 bytes instead of 4 * head_dim.
    """

    def __init__(self, spec: DecoderSpec, rules: Mapping[int, AttentionRule], rows: Mapping[int, int], context: int) -> None:
        super().__init__(spec, rules, rows, context)
        for slot in rules:
            heads = (1, rows[slot], spec.num_key_value_heads)
            for name in ("key", "value"):
                self.register_buffer(f"{name}_{slot}", torch.zeros(*heads, spec.head_dim, dtype=torch.int8))
                self.register_buffer(f"{name}_scale_{slot}", torch.zeros(*heads, 1))
                self.register_buffer(f"{name}_zero_{slot}", torch.zeros(*heads, 1, dtype=torch.int8))

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        places = self.places(slot, start, query.shape[1])
        for name, fresh in (("key", key), ("value", value)):
            codes, scale, zero = quantize_rows(fresh)
            keep(codes, getattr(self, f"{name}_{slot}"), start, places)
            keep(scale, getattr(self, f"{name}_scale_{slot}"), start, places)
            keep(zero, getattr(self, f"{name}_zero_{slot}"), start, places)
        rule = self.rules[slot]
        mask = self.mask(slot, start, query.shape[1])
        codes, scale, zero = quantize_rows(self.heated(rule, query, start))
        return torch.ops.llama.custom_quantized_sdpa(
            codes,
            getattr(self, f"key_{slot}"),
            getattr(self, f"value_{slot}"),
            start,
            mask,
            0.0,
            mask is None,
            self.scale(rule),
            zero,
            scale,
            getattr(self, f"key_zero_{slot}"),
            getattr(self, f"key_scale_{slot}"),
            getattr(self, f"value_zero_{slot}"),
            getattr(self, f"value_scale_{slot}"),
        )


def keep(fresh: torch.Tensor, cache: torch.Tensor, start: int, places: torch.Tensor | None) -> None:
    """Write rows [1, T, kv_heads, ...] into a slot's cache, from row `start` on or at the places of a ring."""
    if places is None:
        torch.ops.llama.update_cache(fresh, cache, start)
    else:
        torch.ops.llama.update_cache_with_indices(fresh, cache, 0, places)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 [..., d] -> int8 codes [..., d], float32 scales [..., 1], int8 zero points [..., 1]."""
    scale, zero = torch.ops.quantized_decomposed.choose_qparams_per_token_asymmetric.default(x, torch.int8)
    codes = torch.ops.quantized_decomposed.quantize_per_token.default(x, scale, zero, -128, 127, torch.int8)
    return codes, scale.to(torch.float32), zero.to(torch.int8)


class CoreAttention(SlotAttention):
    """Plain operators only, for runtimes without the custom ones, and for rules these cannot express.

    Reads the whole cache, and adds to a score what makes it vanish where a token does not see.
    """

    alibi: torch.Tensor

    def __init__(self, spec: DecoderSpec, rules: Mapping[int, AttentionRule], rows: Mapping[int, int], context: int) -> None:
        super().__init__(spec, rules, rows, context)
        self.groups = spec.num_attention_heads // spec.num_key_value_heads
        for slot in rules:
            for name in ("key", "value"):
                self.register_buffer(f"{name}_{slot}", torch.zeros(1, rows[slot], spec.num_key_value_heads, spec.head_dim))
        self.register_buffer("positions", torch.arange(context), persistent=False)
        if spec.alibi != "none":
            assert set(rows.values()) <= {context}, "no family has ALiBi and a window"
            bias = alibi_bias(next(iter(self.rules.values())), spec.num_attention_heads, torch.arange(context))
            shape = (spec.num_key_value_heads, self.groups, 1, context)
            self.register_buffer("alibi", bias.reshape(shape), persistent=False)

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        rule, length = self.rules[slot], query.shape[1]
        query = self.heated(rule, query, start)
        positions, places = self.positions.narrow(0, start, length), self.places(slot, start, length)
        keys, values = getattr(self, f"key_{slot}"), getattr(self, f"value_{slot}")
        keys.index_copy_(1, positions if places is None else places[0], key)
        values.index_copy_(1, positions if places is None else places[0], value)
        rows, kv_heads, head_dim = keys.shape[1:]
        grouped = query.view(1, length, kv_heads, self.groups, head_dim).permute(0, 2, 3, 1, 4)
        grouped = grouped.reshape(kv_heads, self.groups * length, head_dim)
        scores = torch.bmm(grouped, keys[0].permute(1, 2, 0)).view(kv_heads, self.groups, length, rows) * rule.scale
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        added = self.mask(slot, start, length)
        if added is None:
            added = torch.where(seen(rule, positions, self.positions), 0.0, UNSEEN)
        if rule.alibi != "none":
            added = added + self.alibi
        weights = torch.softmax(scores + added, dim=-1).view(kv_heads, self.groups * length, rows)
        attended = torch.bmm(weights, values[0].permute(1, 0, 2)).view(kv_heads, self.groups, length, head_dim)
        return attended.permute(2, 0, 1, 3).reshape(1, length, kv_heads * self.groups, head_dim)


def unseen(rule: AttentionRule, positions: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """0 where a row sees a key, and what makes a score vanish where it does not: float32 [T, context]."""
    return torch.where(seen(rule, positions.narrow(0, start, length), positions), 0.0, UNSEEN)


def unseen_in_ring(rule: AttentionRule, rows: int, positions: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """`unseen` of a ring: float32 [T, rows].

    Of the positions that share a row, one sees the last before it, which is (position - row) mod rows back, and no other:
    the one before is beyond its reach, and the next comes after the call. Nothing lies further back than position 0.
    """
    at = positions.narrow(0, start, length)[:, None]
    back = torch.remainder(at + rows - positions[:rows], rows)  # of no negative: the runtime gives a negative for it
    visible = back <= (at if rule.chunk is None else torch.remainder(at, rule.chunk))
    if rule.window is not None:
        visible = visible & (back < rule.window)
    return torch.where(visible, 0.0, UNSEEN)


def _within(rule: AttentionRule, context: int) -> AttentionRule:
    """A rule without a window or a chunk that holds the whole context."""
    window = rule.window if rule.window is not None and rule.window < context else None
    chunk = rule.chunk if rule.chunk is not None and rule.chunk < context else None
    return dataclasses.replace(rule, window=window, chunk=chunk)
