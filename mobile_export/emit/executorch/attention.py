"""Attention and KV cache as the .pte runs them: one cache slot per execution, whatever blocks are shared.

Each module is what `Decoder` calls as `attend(slot, query, key, value, start)`. Caches are mutable buffers of the program,
[1, context, kv_heads, head_dim]; the runtime starts them at zero.
"""

from __future__ import annotations

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers torch.ops.llama
from torch import nn

from mobile_export.families.spec import DecoderSpec


class CustomAttention(nn.Module):
    """The runtime's own `llama::update_cache` and `llama::custom_sdpa`, float32 cache."""

    def __init__(self, spec: DecoderSpec, slots: int, context: int) -> None:
        super().__init__()
        for slot in range(slots):
            for name in ("key", "value"):
                self.register_buffer(f"{name}_{slot}", torch.zeros(1, context, spec.num_key_value_heads, spec.head_dim))

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        keys, values = getattr(self, f"key_{slot}"), getattr(self, f"value_{slot}")
        torch.ops.llama.update_cache(key, keys, start)
        torch.ops.llama.update_cache(value, values, start)
        return torch.ops.llama.custom_sdpa(query, keys, values, start, None, 0.0, True)


class CustomInt8Attention(nn.Module):
    """`llama::custom_quantized_sdpa` over an int8 cache: one scale and zero point per token and head.

    Query, key and value are quantized to the full int8 range as they come (asymmetric), so a cached row is
    head_dim + 5 bytes instead of 4 * head_dim.
    """

    def __init__(self, spec: DecoderSpec, slots: int, context: int) -> None:
        super().__init__()
        rows = (1, context, spec.num_key_value_heads)
        for slot in range(slots):
            for name in ("key", "value"):
                self.register_buffer(f"{name}_{slot}", torch.zeros(*rows, spec.head_dim, dtype=torch.int8))
                self.register_buffer(f"{name}_scale_{slot}", torch.zeros(*rows, 1))
                self.register_buffer(f"{name}_zero_{slot}", torch.zeros(*rows, 1, dtype=torch.int8))

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        for name, fresh in (("key", key), ("value", value)):
            codes, scale, zero = quantize_rows(fresh)
            torch.ops.llama.update_cache(codes, getattr(self, f"{name}_{slot}"), start)
            torch.ops.llama.update_cache(scale, getattr(self, f"{name}_scale_{slot}"), start)
            torch.ops.llama.update_cache(zero, getattr(self, f"{name}_zero_{slot}"), start)
        codes, scale, zero = quantize_rows(query)
        return torch.ops.llama.custom_quantized_sdpa(
            codes,
            getattr(self, f"key_{slot}"),
            getattr(self, f"value_{slot}"),
            start,
            None,
            0.0,
            True,
            None,
            zero,
            scale,
            getattr(self, f"key_zero_{slot}"),
            getattr(self, f"key_scale_{slot}"),
            getattr(self, f"value_zero_{slot}"),
            getattr(self, f"value_scale_{slot}"),
        )


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 [..., d] -> int8 codes [..., d], float32 scales [..., 1], int8 zero points [..., 1]."""
    scale, zero = torch.ops.quantized_decomposed.choose_qparams_per_token_asymmetric.default(x, torch.int8)
    codes = torch.ops.quantized_decomposed.quantize_per_token.default(x, scale, zero, -128, 127, torch.int8)
    return codes, scale.to(torch.float32), zero.to(torch.int8)


class CoreAttention(nn.Module):
    """Plain operators only, for runtimes built without the custom ones. Reads the cache up to the last token written."""

    positions: torch.Tensor

    def __init__(self, spec: DecoderSpec, slots: int, context: int) -> None:
        super().__init__()
        self.groups = spec.num_attention_heads // spec.num_key_value_heads
        self.scale = spec.head_dim**-0.5
        for slot in range(slots):
            for name in ("key", "value"):
                self.register_buffer(f"{name}_{slot}", torch.zeros(1, context, spec.num_key_value_heads, spec.head_dim))
        self.register_buffer("positions", torch.arange(context), persistent=False)

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        length = query.shape[1]
        rows = self.positions.narrow(0, start, length)
        keys, values = getattr(self, f"key_{slot}"), getattr(self, f"value_{slot}")
        keys.index_copy_(1, rows, key)
        values.index_copy_(1, rows, value)
        context, kv_heads, head_dim = keys.shape[1:]
        grouped = query.view(1, length, kv_heads, self.groups, head_dim).permute(0, 2, 3, 1, 4)
        grouped = grouped.reshape(kv_heads, self.groups * length, head_dim)
        scores = torch.bmm(grouped, keys[0].permute(1, 2, 0)).view(kv_heads, self.groups, length, context) * self.scale
        unseen = torch.where(self.positions[None] <= rows[:, None], 0.0, -1e9)
        weights = torch.softmax(scores + unseen, dim=-1).view(kv_heads, self.groups * length, context)
        attended = torch.bmm(weights, values[0].permute(1, 0, 2)).view(kv_heads, self.groups, length, head_dim)
        return attended.permute(2, 0, 1, 3).reshape(1, length, kv_heads * self.groups, head_dim)
