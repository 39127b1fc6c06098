"""How large one value may become: a damaged program must not take the machine down with it."""

from __future__ import annotations

import math

from mobile_export.verify.mlprogram.values import LARGEST


def bounded(*sizes: int) -> None:
    """Refuse a result before it is made.

    Raises:
        ValueError: it would have more than LARGEST elements, or less than none.
    """
    if any(size < 0 for size in sizes) or math.prod(sizes) > LARGEST:
        raise ValueError(f"its result would have {list(sizes)} elements")
