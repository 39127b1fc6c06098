"""Operators that multiply matrices: linear, matmul, conv, attention.

Source: coremltools/converters/mil/mil/ops/defs, iOS15 and iOS17 linear.py and conv.py, iOS18/transformers.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mobile_export.verify.mlprogram.bounds import bounded

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] by weight [out, in] -> [..., out]."""
    bounded(*x.shape[:-1], weight.shape[0])
    return functional.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """x @ y as numpy broadcasts it, either one transposed first; transposing a vector has no effect."""
    if transpose_x and x.dim() > 1:
        x = x.mT
    if transpose_y and y.dim() > 1:
        y = y.mT
    bounded(*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), *x.shape[-2:-1], *y.shape[-1:])
    return x @ y


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution of x [batch, in, *sizes] by weight [out, in / groups, *kernel], 1 to 3 sizes.

    Raises:
        ValueError: a pad_type other than valid and custom, or paddings that do not fit it.
    """
    spatial = x.dim() - 2
    if pad_type == "custom":
        if pad is None or len(pad) != 2 * spatial:
            raise ValueError(f"pad {pad} for {spatial} dimensions")
        # ours: before and after, first dimension first; torch's: last dimension first
        ends = [pad[2 * axis + end] for axis in reversed(range(spatial)) for end in (0, 1)]
        before_after = zip(pad[::2], pad[1::2], strict=True)
        bounded(*x.shape[:2], *(size + sum(both) for size, both in zip(x.shape[2:], before_after, strict=True)))
        x = functional.pad(x, ends)
    elif pad_type != "valid":
        raise ValueError(f"pad_type {pad_type[:40]} is not run here")
    bounded(x.shape[0], weight.shape[0], *x.shape[2:])
    run = CONVOLUTIONS[spatial]
    return run(x, weight, bias, stride=strides or 1, dilation=dilations or 1, groups=groups)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query @ key^T / sqrt(E) + attn_mask) @ value; a bool mask is true where attention is paid."""
    bounded(*query.shape[:-1], key.shape[-2])
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value
