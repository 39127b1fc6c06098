"""The norms of a decoder. A LayerNorm is PyTorch's own."""

from __future__ import annotations

import torch
from torch import nn

from mobile_export.families.spec import DecoderSpec


class RmsNorm(nn.Module):
    """x / sqrt(mean(x**2) + eps) * weight over the last axis; without weight where it has none. Source: arXiv:1910.07467."""

    weight: nn.Parameter | None

    def __init__(self, size: int, eps: float, *, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(size)) if affine else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return normal if self.weight is None else normal * self.weight


def stream_norm(spec: DecoderSpec) -> nn.Module:
    """A norm over the residual stream."""
    if spec.norm == "layer":
        return nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps, elementwise_affine=spec.norm_affine)
    return RmsNorm(spec.hidden_size, spec.norm_eps, affine=spec.norm_affine)


def head_norm(spec: DecoderSpec, kind: str) -> nn.Module:
    """A norm over each head of query or key: BlockSpec's qk_norm other than "none"."""
    if kind == "layer":
        return nn.LayerNorm(spec.head_dim, eps=spec.norm_eps)
    return RmsNorm(spec.head_dim, spec.norm_eps, affine=kind == "rms")
