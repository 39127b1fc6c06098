"""Operators that move elements and compute none: shapes, slices, joins, lookups, fills.

Source: coremltools/converters/mil/mil/ops/defs, tensor_transformation.py and tensor_operation.py of iOS15 to iOS18,
scatter_gather.py of iOS15 to iOS17.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mobile_export.verify.mlprogram.bounds import bounded


def identity(x: Tensor) -> Tensor:
    """x."""
    return x


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """x in another shape: -1 is what is left, 0 the size of x at that place counted from the right, 1 beyond its rank."""
    sizes = [1] * (len(shape) - x.dim()) + list(x.shape[max(0, x.dim() - len(shape)) :])
    return x.reshape([size or same for size, same in zip(shape, sizes, strict=True)])


def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """x with axes of size 1, which are numbered in the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """x without those axes that have size 1; all such by default."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def transpose(x: Tensor, perm: list[int]) -> Tensor:
    """x with its axes in the order of perm."""
    return x.permute(perm)


def shape(x: Tensor) -> Tensor:
    """Sizes of x, int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] of every axis; a mask leaves the begin or end open, squeeze_mask takes the one at begin."""
    index, reversed_axes = _index(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return x[index] if not reversed_axes else x.flip(reversed_axes)[index]


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """A copy of x with the slice that slice_by_index would take replaced by update."""
    return slice_update_in_place(x.clone(), update, begin, end, stride, begin_mask, end_mask, squeeze_mask)


def slice_update_in_place(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """The same, in x itself.

    Raises:
        ValueError: update has another shape than the slice, or a stride is negative.
    """
    index, reversed_axes = _index(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if reversed_axes:
        raise ValueError("a negative stride is not run here")
    slot = x[index]
    if slot.shape != update.shape:
        raise ValueError(f"its update has the shape {list(update.shape)}, the slice {list(slot.shape)}")
    slot.copy_(update)
    return x


def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """`size` elements from `begin` of every axis; -1 is all that follow.

    Raises:
        ValueError: the slice leaves x.
    """
    if not len(begin) == len(size) == x.dim():
        raise ValueError(f"begin {begin} and size {size} for {x.dim()} axes")
    starts = [start + whole if start < 0 else start for start, whole in zip(begin, x.shape, strict=True)]
    ends = [whole if count == -1 else start + count for start, count, whole in zip(starts, size, x.shape, strict=True)]
    if any(not 0 <= start <= end <= whole for start, end, whole in zip(starts, ends, x.shape, strict=True)):
        raise ValueError(f"begin {begin} and size {size} leave {list(x.shape)}")
    return x[tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))]


def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Tensors joined along an axis, or their elements in turn if interleaved. Scalars join as vectors of one."""
    values = [value.reshape(1) if value.dim() == 0 else value for value in values]
    bounded(sum(value.numel() for value in values))
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def stack(values: list[Tensor], axis: int) -> Tensor:
    """Tensors joined along a new axis."""
    bounded(sum(value.numel() for value in values))
    return torch.stack(values, axis)


def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None) -> list[Tensor]:
    """x cut along an axis, into equal parts or those of split_sizes.

    Raises:
        ValueError: the parts do not make x.
    """
    size = x.shape[axis]
    if split_sizes is None:
        if not num_splits or size % num_splits:
            raise ValueError(f"{size} do not divide into {num_splits} parts")
        split_sizes = [size // num_splits] * num_splits
    return list(x.split(split_sizes, axis))


def tile(x: Tensor, reps: list[int]) -> Tensor:
    """x repeated along every axis.

    Raises:
        ValueError: not one number for each axis.
    """
    if len(reps) != x.dim():
        raise ValueError(f"reps {reps} for {x.dim()} axes")
    bounded(*(size * times for size, times in zip(x.shape, reps, strict=True)))
    return x.repeat(reps)


def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """x in the other direction along axes, all by default."""
    return x.flip(list(range(x.dim())) if axes is None else axes)


def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """The last axes of x padded before and after.

    Raises:
        ValueError: a mode other than constant, or an odd number of paddings.
    """
    axes = len(pad) // 2
    if mode != "constant" or len(pad) % 2 or axes > x.dim():
        raise ValueError(f"padding {pad} in mode {mode[:40]} is not run here")
    first = x.dim() - axes
    bounded(*x.shape[:first], *(size + sum(pad[2 * at : 2 * at + 2]) for at, size in enumerate(x.shape[first:])))
    # ours: first axis first; torch's: last axis first
    return functional.pad(x, [pad[2 * axis + end] for axis in reversed(range(axes)) for end in (0, 1)], value=constant_val)


def fill(shape: list[int], value: Tensor | None = None) -> Tensor:
    """`value` in every element, 0.0 by default."""
    bounded(*shape)
    if value is None:
        return torch.zeros(shape)
    return value.reshape(()).expand(shape).clone()


def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """`value` in a tensor of another's shape, 0.0 by default."""
    return fill(list(ref_tensor.shape), value)


def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """From start to end, without it.

    Raises:
        ValueError: the step is 0.
    """
    first, last, by = start.item(), end.item(), step.item()
    if by == 0 or not math.isfinite((last - first) / by):
        raise ValueError(f"a range from {first} to {last} by {by}")
    bounded(max(0, math.ceil((last - first) / by)))
    if (last - first) / by <= 0:
        return torch.empty(0, dtype=start.dtype)
    return torch.arange(first, last, by, dtype=start.dtype)


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """x with zeros outside the band of `lower` diagonals below and `upper` above the main one; -1 keeps all."""
    if lower >= 0:
        x = x.triu(-lower)
    return x.tril(upper) if upper >= 0 else x.clone()


def one_hot(
    indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Tensor | None = None, off_value: Tensor | None = None
) -> Tensor:
    """A new axis of `one_hot_vector_size`: on_value (1) at the index, off_value (0) elsewhere."""
    bounded(*indices.shape, one_hot_vector_size)
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros_like(on) if off_value is None else off_value
    hot = indices.unsqueeze(axis) == torch.arange(one_hot_vector_size).reshape(
        [-1 if at == axis % (indices.dim() + 1) else 1 for at in range(indices.dim() + 1)]
    )
    return torch.where(hot, on, off)


def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool | None = None) -> Tensor:
    """Slices of x along an axis.

    Raises:
        ValueError: batch_dims, or an index outside (which a device answers with anything).
    """
    if batch_dims:
        raise ValueError(f"batch_dims {batch_dims} is not run here")
    axis = _axis(axis, x)
    wanted = _inside(indices, x.shape[axis], validate_indices).reshape(-1)
    bounded(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, wanted).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool | None = None) -> Tensor:
    """The element of each place along an axis; indices has the rank of x."""
    return torch.gather(x, axis, _inside(indices, x.shape[axis], validate_indices))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool | None = None) -> Tensor:
    """x[indices[..., 0], indices[..., 1], ...].

    Raises:
        ValueError: batch_dims, or an index outside.
    """
    if batch_dims:
        raise ValueError(f"batch_dims {batch_dims} is not run here")
    bounded(*indices.shape[:-1], *x.shape[indices.shape[-1] :])
    return x[_places(indices, x, validate_indices)]


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool | None = None
) -> Tensor:
    """A copy of data, changed by updates at data[indices[..., 0], indices[..., 1], ...].

    Raises:
        ValueError: a mode other than add and update, or an index outside.
    """
    if mode not in ("add", "update"):
        raise ValueError(f"mode {mode[:40]} is not run here")
    return data.index_put(_places(indices, data, validate_indices), updates, accumulate=mode == "add")


def _axis(axis: int, x: Tensor) -> int:
    if not -x.dim() <= axis < x.dim():
        raise ValueError(f"axis {axis} of {x.dim()}")
    return axis % x.dim()


def _inside(indices: Tensor, size: int, validate: bool | None) -> Tensor:
    """Indices, int64. Outside is an error, validated or not: a device would answer with anything.

    Up to iOS 16 operators have no validate_indices, and negative indices count from the end; since then they are outside.
    """
    least = -size if validate is None else 0
    if indices.numel():
        smallest, largest = (int(value) for value in indices.aminmax())
        if smallest < least or largest >= size:
            raise ValueError(f"index {smallest if smallest < least else largest} of {size}")
        if smallest < 0:
            indices = torch.where(indices < 0, indices + size, indices)
    return indices.long()


def _places(indices: Tensor, x: Tensor, validate: bool | None) -> tuple[Tensor, ...]:
    return tuple(_inside(along, size, validate) for along, size in zip(indices.unbind(-1), x.shape, strict=False))


def _index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
    squeeze_mask: list[bool] | None,
) -> tuple[tuple[slice | int, ...], list[int]]:
    """Python's own index, and the axes to turn around before it is applied (torch takes no negative stride)."""
    rank = x.dim()
    given = (begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if any(values is not None and len(values) != rank for values in given):
        raise ValueError(f"begin {begin}, end {end} and their masks for {rank} axes")
    index: list[slice | int] = []
    reversed_axes = []
    for axis, size in enumerate(x.shape):
        if squeeze_mask and squeeze_mask[axis]:
            if not -size <= begin[axis] < size:
                raise ValueError(f"index {begin[axis]} of {size}")
            index.append(begin[axis])
            continue
        first = None if begin_mask and begin_mask[axis] else begin[axis]
        last = None if end_mask and end_mask[axis] else end[axis]
        by = stride[axis] if stride else 1
        start, stop, by = slice(first, last, by).indices(size)
        if by < 0:
            reversed_axes.append(axis)
            start, stop, by = size - 1 - start, size - 1 - stop, -by
        index.append(slice(start, max(start, stop), by))
    return tuple(index), reversed_axes
