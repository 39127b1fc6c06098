"""Norms, activation and head in the operators XNNPACK takes whole; for_xnnpack puts them in a piece's place.

A piece must become exactly one delegate. A mean over the last axis, a layer norm, an added scalar and a slice of a tensor
of dynamic length would stay outside of it. So a norm's mean is written as a product with a constant row, eps is that
product's bias, and a factor is a constant of one value.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from mobile_export.families.spec import DecoderSpec
from mobile_export.model.decoder import ACTIVATIONS, FeedForward, Head
from mobile_export.model.norms import RmsNorm


class RmsNormAsProduct(nn.Module):
    """RmsNorm with mean(x**2) + eps as a Linear of one output."""

    mean_row: torch.Tensor
    eps: torch.Tensor

    def __init__(self, norm: RmsNorm) -> None:
        super().__init__()
        assert norm.weight is not None
        size = norm.weight.numel()
        self.weight = norm.weight
        self.register_buffer("mean_row", mean_row(size))
        self.register_buffer("eps", torch.full((1,), norm.eps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(F.linear(x * x, self.mean_row, self.eps)) * self.weight


class LayerNormAsProduct(nn.Module):
    """LayerNorm with its mean, and its variance + eps, as Linears of one output each."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    mean_row: torch.Tensor
    eps: torch.Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        self.register_buffer("mean_row", mean_row(norm.normalized_shape[0]))
        self.register_buffer("eps", torch.full((1,), norm.eps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - F.linear(x, self.mean_row)
        normal = centred * torch.rsqrt(F.linear(centred * centred, self.mean_row, self.eps))
        return normal if self.weight is None or self.bias is None else normal * self.weight + self.bias


class TanhGelu(nn.Module):
    """gelu(approximate="tanh"), spelled out: XNNPACK 1.5.1 runs that as an erf-GELU, 1e-4 of the largest logit away.

    0.5 * (1 + tanh(u)) is sigmoid(2 * u), so the whole is x * sigmoid(x * (linear + cubic * x**2)).
    """

    linear: torch.Tensor
    cubic: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        slope = 2 * math.sqrt(2 / math.pi)
        self.register_buffer("linear", torch.full((1,), slope))
        self.register_buffer("cubic", torch.full((1,), slope * 0.044715))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x * (x * x * self.cubic + self.linear))


class ScaledHead(Head):
    """Head whose logits are scaled or capped, the factors being constants."""

    factor: torch.Tensor
    cap: torch.Tensor

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__(spec)
        self.register_buffer("factor", torch.full((1,), spec.logit_scale / (spec.logit_softcap or 1), device="cpu"))
        self.register_buffer("cap", torch.full((1,), spec.logit_softcap or 1.0, device="cpu"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.linear(self.project(self.norm(x))) * self.factor
        return logits if self.softcap is None else torch.tanh(logits) * self.cap


def head_of(spec: DecoderSpec) -> type[Head]:
    """The head a spec asks for."""
    return Head if spec.logit_scale == 1 and spec.logit_softcap is None else ScaledHead


def mean_row(size: int) -> torch.Tensor:
    """What a row of `size` values is multiplied with for its mean."""
    return torch.full((1, size), 1.0 / size)


def for_xnnpack(piece: nn.Module) -> nn.Module:
    """Replace a piece's norms and activation, in place, by the forms that stay inside a delegate and are what they say."""
    for name, module in list(piece.named_modules()):
        if isinstance(module, RmsNorm):
            piece.set_submodule(name, RmsNormAsProduct(module))
        elif isinstance(module, nn.LayerNorm):
            piece.set_submodule(name, LayerNormAsProduct(module))
        elif isinstance(module, FeedForward) and module.activation is ACTIVATIONS["gelu_tanh"]:
            module.activation = TanhGelu()
    return piece.eval().requires_grad_(False)
