"""AttentionInput as one delegate: query, key and value stay one tensor, and are split outside of it.

A slice of a tensor of dynamic length would stay outside the delegate. So whatever is done to query and key alone is done
to all heads with constants that leave value as it is: it is rotated by no angle, and normed by dividing by 1.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from mobile_export.emit.executorch.delegable import mean_row
from mobile_export.families.spec import BlockSpec, DecoderSpec, RopeSpec
from mobile_export.model.norms import stream_norm
from mobile_export.model.rotary import RotaryTables


class HeadAffine(nn.Module):
    """The parameters of a norm over each head of query or of key."""

    bias: nn.Parameter | None

    def __init__(self, size: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.register_parameter("bias", nn.Parameter(torch.zeros(size)) if bias else None)


class JoinedAttentionInput(nn.Module):
    """AttentionInput up to the split: [1, T, heads + 2 * kv_heads, head_dim], query and key normed and rotated.

    The channels that rotate together are brought together by a product with a permutation. cos and sin come for every
    head (JoinedRotaryTables), and are left out for a block that rotates nothing.
    """

    swap: torch.Tensor
    mean_row: torch.Tensor
    of_query: torch.Tensor
    of_key: torch.Tensor
    of_value: torch.Tensor
    of_both: torch.Tensor
    added: torch.Tensor

    def __init__(self, spec: DecoderSpec, kind: BlockSpec | None = None) -> None:
        super().__init__()
        kind = kind or BlockSpec()
        self.heads, self.head_dim = spec.num_attention_heads + 2 * spec.num_key_value_heads, spec.head_dim
        self.qk_norm = kind.qk_norm
        self.norm: nn.Module = nn.Identity() if spec.norm_placement == "post" else stream_norm(spec)
        self.qkv = nn.Linear(spec.hidden_size, spec.qkv_size, bias=spec.qkv_bias)
        if kind.rope is not None:
            order = _partners(spec.ropes[kind.rope], spec.head_dim)
            self.register_buffer("swap", torch.eye(spec.head_dim, device="cpu")[order])
        if kind.qk_norm in ("rms", "layer"):
            self.q_norm, self.k_norm = (HeadAffine(spec.head_dim, bias=kind.qk_norm == "layer") for _ in range(2))
        if kind.qk_norm != "none":
            self._register_selectors(spec)

    def _register_selectors(self, spec: DecoderSpec) -> None:
        """Columns of 1 for the heads something is done to, [heads + 2 * kv_heads, 1]."""
        sizes = (spec.num_attention_heads, spec.num_key_value_heads, spec.num_key_value_heads)
        with torch.device("cpu"):
            query, key, value = (torch.eye(3).repeat_interleave(torch.tensor(sizes), dim=0)[:, i : i + 1] for i in range(3))
            self.register_buffer("mean_row", mean_row(spec.head_dim))
        self.register_buffer("of_query", query.contiguous())
        self.register_buffer("of_key", key.contiguous())
        self.register_buffer("of_value", value.contiguous())
        self.register_buffer("of_both", query + key)
        self.register_buffer("added", spec.norm_eps * (query + key) + value)

    def forward(self, x: torch.Tensor, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None) -> torch.Tensor:
        joined = self.qkv(self.norm(x)).view(1, -1, self.heads, self.head_dim)
        if self.qk_norm in ("rms", "layer"):
            joined = self._affine(self._normal(joined))
        if cos is not None and sin is not None:
            joined = joined * cos + F.linear(joined, self.swap) * sin
        return self._normal(joined) if self.qk_norm == "l2" else joined

    def _normal(self, joined: torch.Tensor) -> torch.Tensor:
        """Each head of query and key divided by its root mean square, or by its standard deviation and centred."""
        if self.qk_norm == "layer":
            joined = joined - F.linear(joined, self.mean_row) * self.of_both
        return joined * torch.rsqrt(F.linear(joined * joined, self.mean_row) * self.of_both + self.added)

    def _affine(self, normal: torch.Tensor) -> torch.Tensor:
        query, key = self.q_norm, self.k_norm
        scaled = normal * (self.of_query * query.weight + self.of_key * key.weight + self.of_value)
        if query.bias is None or key.bias is None:
            return scaled
        return scaled + (self.of_query * query.bias + self.of_key * key.bias)


class JoinedRotaryTables(RotaryTables):
    """RotaryTables for JoinedAttentionInput: cos and sin [1, T, heads + 2 * kv_heads, head_dim], 1 and 0 for value.

    1 and 0, too, for the channels of query and key that are not rotated.
    """

    def __init__(self, spec: DecoderSpec, rope: RopeSpec, context: int) -> None:
        super().__init__(rope, context)
        unrotated = spec.head_dim - self.cos.shape[-1]
        if unrotated:
            ones = torch.ones(context, unrotated)
            self.cos, self.sin = torch.cat((self.cos, ones), dim=-1), torch.cat((self.sin, ones * 0), dim=-1)
        self.rotated, self.plain = spec.num_attention_heads + spec.num_key_value_heads, spec.num_key_value_heads

    def forward(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = super().forward(start, length)
        size = (1, length, self.rotated, cos.shape[-1])
        ones = cos.new_ones(1, length, self.plain, cos.shape[-1])
        return torch.cat((cos.expand(size), ones), dim=2), torch.cat((sin.expand(size), ones * 0), dim=2)


class SplitHeads(nn.Module):
    """A lowered JoinedAttentionInput in AttentionInput's place: gives query, key and value apart."""

    def __init__(self, joined: nn.Module, spec: DecoderSpec) -> None:
        super().__init__()
        self.joined = joined
        self.sizes = (spec.num_attention_heads, spec.num_key_value_heads, spec.num_key_value_heads)

    def forward(self, x: torch.Tensor, *rotation: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.joined(x, *rotation).split(self.sizes, dim=2)


def shape_of(spec: DecoderSpec, kind: BlockSpec) -> BlockSpec:
    """A block's kind without what its pieces do not depend on, so that blocks lowered alike are equal."""
    rope = kind.rope
    if rope is not None:
        partners = [_partners(each, spec.head_dim).tolist() for each in spec.ropes]
        rope = partners.index(partners[rope])
    return dataclasses.replace(kind, rope=rope, window=None, chunk=None, query_temperature=None)


def _partners(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """For each channel of a head the one it rotates with; itself where it does not."""
    rotated = 2 * len(rope.inverse_frequencies)
    channels = torch.arange(head_dim, device="cpu")
    turned = channels[:rotated]
    turned = turned.view(-1, 2).flip(-1).flatten() if rope.interleaved else turned.roll(rotated // 2)
    return torch.cat((turned, channels[rotated:]))
