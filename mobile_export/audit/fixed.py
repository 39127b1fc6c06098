"""Matrices that are no weights: part of the arithmetic, like the permutation that swaps the halves of a head."""

from __future__ import annotations

import math
from collections.abc import Callable

from mobile_export.audit.payloads import is_matrix

LARGEST = 1 << 12  # rows: a fixed matrix acts within a head or a feature vector; beyond it the content is not read
NUMPY_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
ONE_IN_BFLOAT16, SIGN_IN_BFLOAT16 = 0x3F80, 0x8000


def is_weight_matrix(dtype: str, shape: tuple[int, ...], content: Callable[[], memoryview]) -> bool:
    """A float matrix with values of its own: not a vector, not a permutation (a single 1 or -1 in every row)."""
    return dtype in NUMPY_DTYPES and is_matrix(shape) and not _is_permutation(dtype, shape, content)


def _is_permutation(dtype: str, shape: tuple[int, ...], content: Callable[[], memoryview]) -> bool:
    rows, columns = [size for size in shape if size > 1][-2:]
    if rows != columns or rows > LARGEST:
        return False
    import numpy as np

    values = np.frombuffer(content(), NUMPY_DTYPES[dtype])
    if values.size != math.prod(shape):
        return False
    values = values.reshape(-1, columns)
    if dtype == "bfloat16":
        ones = (values & ~np.uint16(SIGN_IN_BFLOAT16)) == ONE_IN_BFLOAT16
        zeros = (values & ~np.uint16(SIGN_IN_BFLOAT16)) == 0
    else:
        ones, zeros = np.abs(values) == 1, values == 0
    return bool((ones.sum(axis=1) == 1).all() and (ones | zeros).all())
