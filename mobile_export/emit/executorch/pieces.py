"""The decoder's pieces in the form XNNPACK takes whole, and their constants as XNNPACK stores them.

A piece must become exactly one delegate, and two things in it would stay outside: a mean over the last axis, and an added
scalar. So a norm's mean is written as a product with a constant row, and eps is that product's bias.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torchao.quantization.quantize_.workflows import IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8TensorActivationQuantization as ActivationQuantization,
)

from mobile_export.emit.packing import four_bit_pairs
from mobile_export.families.spec import DecoderSpec
from mobile_export.model.norms import RmsNorm
from mobile_export.model.rotary import RotaryTables
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.recipe import Precision

TORCHAO_DTYPE = {4: "int4", 8: "int8"}  # by name: torch's stubs lack int4

SCALE = "scale_"  # what XNNPACK's serializer puts before a scale's digest

Weight = QuantizedWeight | torch.Tensor


class RmsNormAsProduct(nn.Module):
    """RmsNorm with mean(x**2) + eps as a Linear of one output."""

    mean_row: torch.Tensor
    eps: torch.Tensor

    def __init__(self, norm: RmsNorm) -> None:
        super().__init__()
        assert norm.weight is not None
        size = norm.weight.numel()
        self.weight = norm.weight
        self.register_buffer("mean_row", torch.full((1, size), 1.0 / size))
        self.register_buffer("eps", torch.full((1,), norm.eps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(F.linear(x * x, self.mean_row, self.eps)) * self.weight


class JoinedAttentionInput(nn.Module):
    """AttentionInput up to the split: [1, T, heads + 2 * kv_heads, head_dim], query and key rotated, value as it is.

    A slice of a tensor of dynamic length would stay outside the delegate, so the halves of a head are swapped by a product
    with a permutation, and value is rotated by no angle: cos and sin come for every head (JoinedRotaryTables).
    """

    swap: torch.Tensor

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.heads, self.head_dim = spec.num_attention_heads + 2 * spec.num_key_value_heads, spec.head_dim
        self.norm: nn.Module = RmsNorm(spec.hidden_size, spec.norm_eps)
        self.qkv = nn.Linear(spec.hidden_size, spec.qkv_size, bias=spec.qkv_bias)
        order = torch.arange(spec.head_dim, device="cpu").roll(spec.head_dim // 2)
        self.register_buffer("swap", torch.eye(spec.head_dim, device="cpu")[order])

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        joined = self.qkv(self.norm(x)).view(1, -1, self.heads, self.head_dim)
        return joined * cos + F.linear(joined, self.swap) * sin


class JoinedRotaryTables(RotaryTables):
    """RotaryTables for JoinedAttentionInput: cos and sin [1, T, heads + 2 * kv_heads, head_dim], 1 and 0 for value."""

    def __init__(self, spec: DecoderSpec, context: int) -> None:
        super().__init__(spec.ropes[0], context)
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

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.joined(x, cos, sin).split(self.sizes, dim=2)


def for_xnnpack(piece: nn.Module) -> nn.Module:
    """Replace a piece's norms, in place, by the form that stays inside a delegate."""
    for name, module in list(piece.named_modules()):
        if isinstance(module, RmsNorm):
            piece.set_submodule(name, RmsNormAsProduct(module))
    return piece.eval().requires_grad_(False)


def torchao_weight(weight: QuantizedWeight) -> IntxUnpackedToInt8Tensor:
    """Our codes and scales in torchao's representation, with int8 activations chosen per token at run time."""
    columns = weight.codes.shape[1]
    return IntxUnpackedToInt8Tensor(
        qdata=weight.codes,
        scale=weight.scales,
        zero_point=torch.zeros(weight.scales.shape, dtype=torch.int8),
        target_dtype=getattr(torch, TORCHAO_DTYPE[weight.precision.bits]),
        block_size=(1, columns // weight.scales.shape[1]),
        dtype=torch.float32,
        activation_quantization=ActivationQuantization.INT8_ASYM_PER_TOKEN,
    )


@dataclass(frozen=True)
class Constant:
    """Bytes a delegate payload refers to by name, the name holding their SHA-256."""

    key: str
    data: bytes

    @classmethod
    def named(cls, prefix: str, data: bytes) -> Constant:
        """Name bytes as XNNPACK's serializer does."""
        return cls(prefix + digest(data), data)


def constants_of(weight: Weight) -> tuple[Constant, ...]:
    """A weight as XNNPACK's serializer stores it: codes (even input in the low nibble), then scales; or float32 values.

    Source: executorch `backends/xnnpack/operators/node_visitor.py`, `convert_to_qc4w` and `get_serialized_buffer_index`.
    """
    if isinstance(weight, torch.Tensor):
        return (Constant.named("", as_bytes(weight)),)
    four = weight.precision.bits == 4
    scales = weight.scales.to(torch.bfloat16).view(torch.int16) if four else weight.scales
    return Constant.named("", packed_codes(weight)), Constant.named(SCALE, as_bytes(scales))


def packed_codes(weight: QuantizedWeight) -> bytes:
    """8-bit codes as they are; 4-bit codes plus 8, two to a byte, the even input in the low nibble."""
    if weight.precision.bits == 8:
        return as_bytes(weight.codes)
    return as_bytes(four_bit_pairs(weight.codes))


def random_weight(shape: torch.Size, precision: Precision, generator: torch.Generator) -> QuantizedWeight:
    """Codes and scales of a given shape, no two alike: what a template is lowered with."""
    half = 1 << (precision.bits - 1)
    codes = torch.randint(1 - half, half, shape, dtype=torch.int8, generator=generator)
    groups = shape[1] // (precision.group_size or shape[1])
    scales = (torch.rand(shape[0], groups, generator=generator) + 0.5).to(torch.bfloat16).float()
    return QuantizedWeight(codes, scales, precision)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal: what payloads are named by."""
    return hashlib.sha256(data).hexdigest()


def as_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's values, row-major."""
    return tensor.contiguous().numpy().tobytes()
