"""How many inputs share a scale in an ONNX model, and what a matrix weighs there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mobile_export.errors import InputError
from mobile_export.quantize.matrix_plan import MatrixPlan

if TYPE_CHECKING:
    from mobile_export.quantize.weights import ModelWeights

LARGEST_BLOCK, SMALLEST_BLOCK = 256, 16  # what the CPU kernels take


def block_size(matrix: MatrixPlan) -> int:
    """Inputs that share a scale in the file: the recipe's group, or for one scale a channel the widest block that fits.

    The operators know no per-channel scale: it is repeated for every block, and wide blocks are faster, too.
    """
    if matrix.precision.group_size:
        return matrix.precision.group_size
    columns = matrix.shape[1]
    return min(columns & -columns, LARGEST_BLOCK)


def check_blocks(weights: ModelWeights) -> None:
    """Refuse a matrix no block size fits, before any work.

    Raises:
        InputError: a quantized matrix whose inputs do not divide into blocks of a power of two the kernels take.
    """
    for matrix in weights.matrices.values():
        block = block_size(matrix)
        if matrix.precision.bits < 32 and (block & (block - 1) or not SMALLEST_BLOCK <= block <= LARGEST_BLOCK):
            what = f"{matrix.shape[1]} inputs in blocks of {block}, onnxruntime takes 16, 32, 64, 128 or 256"
            then = (
                "give it another group_size by an [[override]]" if matrix.precision.group_size else "use `pte`, or recipe fp32"
            )
            raise InputError(weights.where(matrix.name), what, then)


def stored_bytes(matrix: MatrixPlan, float_bytes: int) -> int:
    """Bytes of a matrix in model.onnx.data, codes and scales. float_bytes: 4, or 2 for float16 activations."""
    if matrix.precision.bits == 32:
        return 4 * matrix.parameters
    return matrix.code_bytes + matrix.parameters // block_size(matrix) * float_bytes


def predicted_bytes(weights: ModelWeights, float_bytes: int) -> dict[str, int]:
    """Part -> bytes of its weights in model.onnx.data. float_bytes: as stored_bytes."""
    parts = dict.fromkeys(weights.predicted_bytes(), 0)
    for name in weights.stored():
        matrix = weights.matrices.get(name)
        size = stored_bytes(matrix, float_bytes) if matrix else float_bytes * math.prod(weights.shape(name))
        parts[weights.part_of(name)] += size
    return parts
