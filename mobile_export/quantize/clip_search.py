"""Symmetric weight quantization with clipping search: one scale per group of inputs, chosen for the least squared error.

In:  float32 weight, (out_features, in_features).
Out: QuantizedWeight, one code per byte, scales that bfloat16 holds exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mobile_export.quantize.recipe import Precision

TINY = 2.0**-100  # a group whose largest value is below this becomes exactly 0
CLIPS_4_BIT = tuple((1 - 0.03 * step) / top for step in range(12) for top in (7.0, 8.0))
CLIPS_8_BIT = tuple((1 - 0.02 * step) / 127 for step in range(8))
CHUNK = 1 << 17  # values searched at a time: what stays in a core's cache


@dataclass(frozen=True)
class QuantizedWeight:
    """weight ~ codes * scales, the scale repeated over its group.

    codes: int8 (out_features, in_features); 4-bit codes lie in [-8, 7], 8-bit codes in [-127, 127].
    scales: float32 (out_features, in_features // group_size), above 0. Every value is exact in bfloat16, but for scales
        that come with a checkpoint.
    precision: bits and group size they were made with.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    precision: Precision

    def dequantized(self) -> torch.Tensor:
        """float32 (out_features, in_features)."""
        return (self.codes.view(*self.scales.shape, -1) * self.scales[..., None]).view(self.codes.shape)


def code_range(precision: Precision) -> tuple[int, int]:
    """The least and the largest code."""
    return (-8, 7) if precision.bits == 4 else (-127, 127)


def quantize_weight(weight: torch.Tensor, precision: Precision, importance: torch.Tensor | None = None) -> QuantizedWeight:
    """Round a matrix to signed codes, with the scale per group that gives the least squared error among the clips tried.

    The scales are rounded to bfloat16 before the codes are chosen, so the codes are the nearest for the scale that is
    stored. 4 bits try ranges [-7, 7] and [-8, 7], each with up to a third clipped away.

    Args:
        weight: float32 (out_features, in_features), finite.
        precision: 4 or 8 bits; group_size divides in_features.
        importance: float32 (in_features,), what an input's squared errors count; None: all the same.
    Returns:
        Codes and scales. A group's squared error, so weighted, is at most that of plain absmax scaling.
    Source: clipping as in OCTAV (arXiv:2206.06501), by search; groups as in Q-BERT (arXiv:1909.05840).
    """
    rows, columns = weight.shape
    group = precision.group_size or columns
    assert columns % group == 0, f"{columns} inputs in groups of {group}: ModelWeights lets none through"
    low, high = code_range(precision)
    clips = CLIPS_4_BIT if precision.bits == 4 else CLIPS_8_BIT
    groups = weight.reshape(-1, group)
    counts = None if importance is None else importance.reshape(-1, group).repeat(rows, 1)
    codes = torch.empty(groups.shape, dtype=torch.int8)
    scales = torch.empty(len(groups), dtype=torch.float32)
    step = max(1, CHUNK // group)
    for at in range(0, len(groups), step):
        part = groups[at : at + step]
        scales[at : at + step] = _search(part, None if counts is None else counts[at : at + step], low, high, clips)
        codes[at : at + step] = _round(part, scales[at : at + step, None], low, high).to(torch.int8)
    return QuantizedWeight(codes.view(rows, columns), scales.view(rows, -1), precision)


def _search(groups: torch.Tensor, counts: torch.Tensor | None, low: int, high: int, clips: tuple[float, ...]) -> torch.Tensor:
    largest = groups.abs().amax(dim=1)
    best_scale = torch.ones_like(largest)
    best_error = torch.full_like(largest, torch.inf)
    for clip in clips:
        scale = (largest * clip).to(torch.bfloat16).float()
        scale = torch.where(largest < TINY, torch.ones_like(scale), scale)[:, None]
        squares = torch.sub(groups, _round(groups, scale, low, high) * scale).square_()
        error = (squares if counts is None else squares.mul_(counts)).sum(dim=1)
        better = (error < best_error) | (clip == clips[0])  # the first even where the error is beyond float32
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale[:, 0], best_scale)
    return best_scale


def _round(groups: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return (groups / scale).round_().clamp_(low, high)
