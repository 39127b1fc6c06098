"""Scales as a .pte holds them: those of 4-bit groups as bfloat16, one scale a channel as float32.

Ours are bfloat16 before the codes are chosen; a checkpoint that was trained with codes has whatever training computed in.
"""

from __future__ import annotations

import dataclasses

import torch

from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.weights import ModelWeights


def as_stored(weight: QuantizedWeight) -> QuantizedWeight:
    """The matrix with the scales XNNPACK multiplies with."""
    if weight.precision.group_size is None:
        return weight
    return dataclasses.replace(weight, scales=weight.scales.to(torch.bfloat16).float())


def rounded_scales(weights: ModelWeights) -> list[str]:
    """A warning where scales a checkpoint came with are not what a .pte holds."""
    rounded, total, most, first = 0, 0, 0.0, ""
    for name in weights.trained:
        if weights.matrices[name].precision.group_size is None:
            continue
        scales = weights.quantized(name).scales
        moved = ((scales.to(torch.bfloat16).float() - scales) / scales).abs()
        total, rounded, most = total + scales.numel(), rounded + int((moved > 0).sum()), max(most, float(moved.max()))
        first = first or weights.where(name)
    if not rounded:
        return []
    what = f"{first} and others: {rounded:,} of {total:,} scales of 4-bit groups are not bfloat16, as a .pte holds them"
    return [f"{what}, and are rounded, by {100 * most:.2f} % at most; ONNX keeps them as they were trained"]
