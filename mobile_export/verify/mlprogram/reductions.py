"""Operators over a whole axis: reductions, softmax, normalization, running sums, order.

Source: coremltools/converters/mil/mil/ops/defs, reduction.py, normalization.py, activation.py and tensor_operation.py of
iOS15 to iOS17.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    """An operator that reduces some axes, all of them by default."""

    def run(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        chosen = list(range(x.dim())) if axes is None else axes
        return function(x, chosen, keep_dims).to(x.dtype)  # torch sums int32 to int64

    return run


def product(x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    """The product of the elements; torch takes one axis at a time."""
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x if keep_dims else squeezed(x, axes)


def squeezed(x: Tensor, axes: list[int]) -> Tensor:
    """x without these axes of size 1."""
    return x.squeeze(tuple(axes))


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the largest element."""
    return x.argmax(axis, keepdim=keep_dims).to(torch.int32)


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the smallest element."""
    return x.argmin(axis, keepdim=keep_dims).to(torch.int32)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) over its sum along an axis."""
    return torch.softmax(x, axis)


def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the axes, times gamma, plus beta; the two have the shape of the axes."""
    chosen = sorted(axis % x.dim() for axis in axes) if axes is not None else list(range(x.dim()))
    shape = [size if axis in chosen else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(chosen, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(chosen, keepdim=True) + epsilon)
    if gamma is not None:
        normed = normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(sum of squares of the last three axes + epsilon)."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along an axis; exclusive leaves the element itself out, reverse begins at the end."""
    if reverse:
        x = x.flip(axis)
    summed = x.cumsum(axis, dtype=x.dtype)
    if exclusive and x.shape[axis]:  # each sum moves on by one; taking x off again would round
        summed = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), summed.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return summed.flip(axis) if reverse else summed


def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Indices that order an axis, from the largest by default."""
    return x.argsort(dim=axis, descending=not ascending, stable=True).to(torch.int32)


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> list[Tensor]:
    """The k largest elements (smallest if ascending) of an axis, and their indices."""
    values, indices = x.topk(k, axis, largest=not ascending, sorted=True)
    return [values, indices.to(torch.int32)] if return_indices else [values]
