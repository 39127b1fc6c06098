"""Operators that give a weight from what is stored of it: codes and scales, indices and tables.

Source: coremltools/converters/mil/mil/ops/defs, iOS16/constexpr_ops.py and iOS18/compression.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mobile_export.verify.mlprogram.bounds import bounded


def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), float32; every scale and offset serves a block of data.

    Raises:
        ValueError: the blocks do not divide data.
    """
    blocks, one_each = _blocks(data, scale)
    values = data.float().reshape(blocks)
    if offset is not None:
        if offset.shape != scale.shape:
            raise ValueError(f"{list(scale.shape)} scales and {list(offset.shape)} offsets")
        values = values - offset.float().reshape(one_each)
    return (values * scale.float().reshape(one_each)).reshape(data.shape)


def lut_to_dense(indices: Tensor, lut: Tensor, vector_axis: int | None = None) -> Tensor:
    """Each index replaced by its value in the table (lut [*blocks, entries, 1]) of its block.

    Raises:
        ValueError: tables of vectors, blocks that do not divide indices, or an index beyond its table.
    """
    if lut.dim() != indices.dim() + 2 or lut.shape[-1] != 1:
        raise ValueError(f"a table of shape {list(lut.shape)} for indices of {indices.dim()} axes is not run here")
    blocks, one_each = _blocks(indices, lut[..., 0, 0])
    entries = lut.shape[-2]
    if indices.numel() and int(indices.max()) >= entries:
        raise ValueError(f"index {int(indices.max())} of a table of {entries}")
    table = torch.arange(math.prod(lut.shape[:-2])).reshape(one_each) * entries
    return lut.reshape(-1)[(indices.long().reshape(blocks) + table).reshape(indices.shape)]


def lut_to_dense_ios16(indices: Tensor, lut: Tensor, shape: list[int]) -> Tensor:
    """The older form: one table, and indices packed in bytes from the lowest bit on.

    Raises:
        ValueError: fewer indices than the shape takes, or a table whose size is no power of two.
    """
    bounded(*shape)
    count, bits = math.prod(shape), lut.numel().bit_length() - 1
    if lut.numel() != 1 << bits or not 1 <= bits <= 8 or indices.dtype != torch.uint8 or indices.numel() * 8 < count * bits:
        raise ValueError(f"{indices.numel():,} bytes of indices into {lut.numel()} for the shape {shape}")
    unpacked = (indices.reshape(-1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    places = unpacked.reshape(-1)[: count * bits].reshape(count, bits).int() << torch.arange(bits, dtype=torch.int32)
    return lut[places.sum(1)].reshape(shape)


def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (quantized_data - zero_point), float32; both are one number, or one for each index of an axis."""
    along = [-1 if at == axis % quantized_data.dim() else 1 for at in range(quantized_data.dim())]
    scale, zero_point = (value.float().reshape(along) if value.dim() else value.float() for value in (scale, zero_point))
    return (quantized_data.float() - zero_point) * scale


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """float16 as float32.

    Raises:
        ValueError: another dtype.
    """
    if output_dtype != "fp32":
        raise ValueError(f"output_dtype {output_dtype[:40]}")
    return source_val.float()


def _blocks(data: Tensor, each: Tensor) -> tuple[list[int], list[int]]:
    """Shapes in which data has (number of blocks, size of a block) for every axis, and what serves a block has 1."""
    pairs = list(zip(data.shape, each.shape, strict=False))
    if not each.dim() == data.dim() > 0 or any(not n or size % n for size, n in pairs):
        raise ValueError(f"{list(each.shape)} blocks do not divide {list(data.shape)}")
    return [part for size, n in pairs for part in (n, size // n)], [part for _, n in pairs for part in (n, 1)]
