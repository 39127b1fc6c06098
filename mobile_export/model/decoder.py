"""One decoder for every attention family: (tokens, start) -> logits, with the KV cache behind `attend`.

A block is cut at the attention, since that is where a runtime's own operators sit: `AttentionInput` gives the joined
query, key and value; `FeedForward` takes what the attention gathered to the block's output. Emitters replace these
modules by lowered ones, verification replaces their Linears by quantized ones; the graph between them stays this one.
What families add to it lies beside: entry.py, norms.py, rotary.py, attention_rule.py, short_conv.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from mobile_export.families.spec import BlockSpec, DecoderSpec
from mobile_export.model.norms import head_norm, stream_norm
from mobile_export.model.rotary import rotate
from mobile_export.model.short_conv import ShortConv

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}

Rotation = tuple[torch.Tensor, torch.Tensor]


class AttentionInput(nn.Module):
    """Residual stream [1, T, hidden] -> query [1, T, heads, head_dim], key and value [1, T, kv_heads, head_dim].

    Query and key are rotated; cos and sin are [1, T, 1, rotated], and left out for a block that rotates nothing.
    """

    def __init__(self, spec: DecoderSpec, kind: BlockSpec | None = None) -> None:
        super().__init__()
        kind = kind or BlockSpec()
        self.heads, self.kv_heads, self.head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        self.interleaved = kind.rope is not None and spec.ropes[kind.rope].interleaved
        self.normed_after = kind.qk_norm == "l2"
        self.norm: nn.Module = nn.Identity() if spec.norm_placement == "post" else stream_norm(spec)
        self.qkv: nn.Module = nn.Linear(spec.hidden_size, spec.qkv_size, bias=spec.qkv_bias)
        normed = kind.qk_norm != "none"
        self.q_norm: nn.Module = head_norm(spec, kind.qk_norm) if normed else nn.Identity()
        self.k_norm: nn.Module = head_norm(spec, kind.qk_norm) if normed else nn.Identity()

    def forward(self, x: torch.Tensor, *rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        joined = self.qkv(self.norm(x)).view(1, -1, self.heads + 2 * self.kv_heads, self.head_dim)
        query, key, value = joined.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if not self.normed_after:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotation:
            cos, sin = rotation
            query, key = (rotate(part, cos, sin, interleaved=self.interleaved) for part in (query, key))
        if self.normed_after:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value


class FeedForward(nn.Module):
    """Residual stream [1, T, hidden] and attended values [1, T, heads, head_dim] -> residual stream.

    Of a conv block, [1, T, hidden] in the attended values' place.
    """

    def __init__(self, spec: DecoderSpec, kind: BlockSpec | None = None) -> None:
        super().__init__()
        conv = kind is not None and kind.mixer == "conv"
        hidden, wide = spec.hidden_size, spec.intermediate_size
        self.activation, self.attended_size = ACTIVATIONS[spec.hidden_act], hidden if conv else spec.attended_size
        self.placement, self.parallel = spec.norm_placement, spec.parallel_residual
        self.o: nn.Module = nn.Linear(self.attended_size, hidden, bias=spec.conv_bias if conv else spec.o_bias)
        self.norm: nn.Module = nn.Identity() if self.placement == "post" else stream_norm(spec)
        self.gate: nn.Module | None = nn.Linear(hidden, wide, bias=spec.ffn_bias) if spec.gated else None
        self.up: nn.Module = nn.Linear(hidden, wide, bias=spec.ffn_bias)
        self.down: nn.Module = nn.Linear(wide, hidden, bias=spec.ffn_bias)
        self.o_norm: nn.Module | None = None if self.placement == "pre" else stream_norm(spec)
        self.down_norm: nn.Module | None = None if self.placement == "pre" else stream_norm(spec)

    def forward(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        if self.parallel:
            return x + self._mixed(attended) + self._feed(self.norm(x))
        x = self._add(x, self._mixed(attended), self.o_norm)
        return self._add(x, self._feed(self.norm(x)), self.down_norm)

    def _mixed(self, attended: torch.Tensor) -> torch.Tensor:
        return self.o(attended.reshape(1, -1, self.attended_size))

    def _feed(self, y: torch.Tensor) -> torch.Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(y)))
        return self.down(self.activation(self.gate(y)) * self.up(y))

    def _add(self, x: torch.Tensor, y: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """Add to the residual stream; a norm is on the sum, or in a sandwich on what is added."""
        if norm is None:
            return x + y
        return norm(x + y) if self.placement == "post" else x + norm(y)


class Block(nn.Module):
    """One stored block, in its two pieces. rope: which of the decoder's rotations the first one takes, if any."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, rope: int | None = 0) -> None:
        super().__init__()
        self.attention, self.ffn, self.rope = attention, ffn, rope

    def forward(self, x: torch.Tensor, slot: int, start: int, rotations: Sequence[Rotation], attend: nn.Module) -> torch.Tensor:
        rotation = () if self.rope is None else rotations[self.rope]
        return self.ffn(x, attend(slot, *self.attention(x, *rotation), start))


class ConvBlock(nn.Module):
    """One stored block whose mixer is a short convolution; its slot holds columns instead of keys and values."""

    def __init__(self, conv: ShortConv, ffn: nn.Module) -> None:
        super().__init__()
        self.conv, self.ffn = conv, ffn

    def forward(self, x: torch.Tensor, slot: int, start: int, remember: nn.Module) -> torch.Tensor:
        columns, gate = self.conv(x)
        return self.ffn(x, self.conv.convolve(remember(slot, columns, start), gate))


class Head(nn.Module):
    """Residual stream [1, T, hidden] -> logits [1, T, vocab]."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        hidden, table = spec.hidden_size, spec.table_size
        self.scale, self.softcap = spec.logit_scale, spec.logit_softcap
        self.norm: nn.Module = stream_norm(spec) if spec.final_norm else nn.Identity()
        self.project: nn.Module = nn.Identity() if table == hidden else nn.Linear(hidden, table, bias=False)
        self.linear: nn.Module = nn.Linear(table, spec.vocab_size, bias=spec.head_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.linear(self.project(self.norm(x)))
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class Decoder(nn.Module):
    """The whole model. Stored blocks are modules; the schedule calls them, each execution with its own KV slot.

    embedding: tokens int64 [1, T] -> rows of the token table [1, T, table_size]; unfold: what those are multiplied with,
        float32 (table_size,), None for nothing; entry: (those, start) -> [1, T, hidden], None where they are the residual
        stream already; blocks: stored ones; head: as Head.
    attend: called as attend(slot, query, key, value, start) with query [1, T, heads, head_dim], key and value
        [1, T, kv_heads, head_dim], rotated; it keeps slot's cache and gives [1, T, heads, head_dim].
    remember: as PlainColumns, where there are conv blocks.
    rotary: one for each of the spec's ropes, called as rotary(start, T), gives what blocks take as cos and sin.
    context: start + T may not exceed it.
    """

    unfold: torch.Tensor | None

    def __init__(
        self,
        spec: DecoderSpec,
        schedule: tuple[int, ...],
        context: int,
        *,
        embedding: nn.Module,
        blocks: Iterable[Block | ConvBlock],
        rotary: Iterable[nn.Module],
        attend: nn.Module,
        head: nn.Module,
        unfold: torch.Tensor | None = None,
        entry: nn.Module | None = None,
        remember: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.schedule, self.context = spec, schedule, context
        self.embedding, self.rotary, self.attend, self.head = embedding, nn.ModuleList(rotary), attend, head
        self.entry, self.remember = entry, remember
        self.register_buffer("unfold", unfold)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Run tokens int64 [1, T] that follow `start` int64 [1] cached positions; logits float32 [1, 1, vocab] of the last."""
        return self.head(self.hidden(tokens, start)[:, -1:, :])

    def hidden(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """The residual stream after the last execution, [1, T, hidden]."""
        length = tokens.shape[1]
        position = cast("int", start[0].item())  # symbolic while exported
        torch._check(position >= 0)
        torch._check(position + length <= self.context)
        return self.stream(tokens, position)

    def stream(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """`hidden`, with nothing left to check. position: of the first token; symbolic where a graph is traced."""
        rotations = [tables(position, tokens.shape[1]) for tables in self.rotary]
        x = self.embedding(tokens)
        if self.unfold is not None:
            x = x * self.unfold
        if self.entry is not None:
            x = self.entry(x, position)
        for slot, stored in enumerate(self.schedule):
            block = self.blocks[stored]
            if isinstance(block, ConvBlock):
                x = block(x, slot, position, self.remember)
            else:
                x = block(x, slot, position, rotations, self.attend)
        return x
