"""One decoder for every attention family: (tokens, start) -> logits, with the KV cache behind `attend`.

A block is cut at the attention, since that is where a runtime's own operators sit: `AttentionInput` gives the joined
query, key and value; `FeedForward` takes what the attention gathered to the block's output. Emitters replace these
modules by lowered ones, verification replaces their Linears by quantized ones; the graph between them stays this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from mobile_export.families.spec import DecoderSpec, RopeSpec

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}


class RmsNorm(nn.Module):
    """x / sqrt(mean(x**2) + eps) * weight over the last axis. Source: arXiv:1910.07467."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class AttentionInput(nn.Module):
    """Residual stream [1, T, hidden] -> query [1, T, heads, head_dim], key and value [1, T, kv_heads, head_dim].

    Query and key are rotated; cos and sin are [1, T, 1, head_dim].
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        self.norm: nn.Module = RmsNorm(spec.hidden_size, spec.norm_eps)
        self.qkv: nn.Module = nn.Linear(spec.hidden_size, spec.qkv_size, bias=spec.qkv_bias)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        joined = self.qkv(self.norm(x)).view(1, -1, self.heads + 2 * self.kv_heads, self.head_dim)
        query, key, value = joined.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        return rotate(query, cos, sin), rotate(key, cos, sin), value


class FeedForward(nn.Module):
    """Residual stream [1, T, hidden] and attended values [1, T, heads, head_dim] -> residual stream."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activation, self.attended_size = ACTIVATIONS[spec.hidden_act], spec.attended_size
        self.o: nn.Module = nn.Linear(spec.attended_size, spec.hidden_size, bias=spec.o_bias)
        self.norm: nn.Module = RmsNorm(spec.hidden_size, spec.norm_eps)
        self.gate: nn.Module = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.ffn_bias)
        self.up: nn.Module = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.ffn_bias)
        self.down: nn.Module = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.ffn_bias)

    def forward(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.o(attended.reshape(1, -1, self.attended_size))
        y = self.norm(x)
        return x + self.down(self.activation(self.gate(y)) * self.up(y))


class Block(nn.Module):
    """One stored block, in its two pieces."""

    def __init__(self, attention: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn


class Head(nn.Module):
    """Residual stream [1, T, hidden] -> logits [1, T, vocab]."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.norm: nn.Module = RmsNorm(spec.hidden_size, spec.norm_eps)
        self.linear: nn.Module = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


class Decoder(nn.Module):
    """The whole model. Stored blocks are modules; the schedule calls them, each execution with its own KV slot.

    embedding: tokens int64 [1, T] -> [1, T, hidden]; blocks: stored ones; head: as Head.
    attend: called as attend(slot, query, key, value, start) with query [1, T, heads, head_dim], key and value
        [1, T, kv_heads, head_dim], rotated; it keeps slot's cache and gives [1, T, heads, head_dim].
    rotary: called as rotary(start, T), gives what the blocks take as cos and sin.
    context: start + T may not exceed it.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        schedule: tuple[int, ...],
        context: int,
        *,
        embedding: nn.Module,
        blocks: Iterable[Block],
        rotary: nn.Module,
        attend: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.spec, self.schedule, self.context = spec, schedule, context
        self.embedding, self.rotary, self.attend, self.head = embedding, rotary, attend, head
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
        cos, sin = self.rotary(position, length)
        x = self.embedding(tokens)
        for slot, stored in enumerate(self.schedule):
            block = cast("Block", self.blocks[stored])
            query, key, value = block.attention(x, cos, sin)
            x = block.ffn(x, self.attend(slot, query, key, value, position))
        return x


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel i with channel i + head_dim / 2. x [1, T, heads, head_dim]; cos, sin [1, T, 1, head_dim], sin signed.

    Source: arXiv:2104.09864, in the half-split order of Hugging Face's weights.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin


class RotaryTables(nn.Module):
    """cos and sin of every position: both halves of a head, the first half's sin negated."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, rope: RopeSpec, context: int) -> None:
        super().__init__()
        angle = torch.outer(torch.arange(context, dtype=torch.float32), torch.tensor(rope.inverse_frequencies))
        cos, sin = angle.cos() * rope.attention_factor, angle.sin() * rope.attention_factor
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1))
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1))

    def forward(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows from `start` on, each [1, T, 1, head_dim]."""
        return self.cos.narrow(0, start, length)[None, :, None], self.sin.narrow(0, start, length)[None, :, None]
