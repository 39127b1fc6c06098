"""Activations through int8 and back, one scale and zero point a row: what run time does to a quantized matrix's inputs."""

from __future__ import annotations

import torch


def quantize_dequantize_rows(x: torch.Tensor) -> torch.Tensor:
    """Each row of the last axis through int8: scale and zero point from its least and largest value, 0 always exact.

    Source: XNNPACK `src/xnnpack/quantization.h`, `xnn_f32_qd8_asymmetric_quantization_params`.
    """
    least = x.amin(dim=-1, keepdim=True).clamp(max=0)
    largest = x.amax(dim=-1, keepdim=True).clamp(min=0)
    inverse = torch.where(largest == least, 1.0, 255.0 / (largest - least))
    from_least, from_largest = -128 + least * inverse, 127 + largest * inverse
    zero = torch.where(from_least + from_largest > 0, -128 - least * inverse, 127 - largest * inverse)
    zero = zero.clamp(-128, 127).round()
    codes = (x * inverse).round_().add_(zero).clamp_(-128, 127)
    return codes.sub_(zero).mul_(1 / inverse)


def quantization_steps(x: torch.Tensor) -> torch.Tensor:
    """What one code of each row's int8 stands for, x's shape without its last axis."""
    return (x.amax(dim=-1).clamp(min=0) - x.amin(dim=-1).clamp(max=0)) / 255
