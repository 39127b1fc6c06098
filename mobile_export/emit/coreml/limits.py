"""What a package can hold: weights in float16."""

from __future__ import annotations

import torch

from mobile_export.errors import InputError


def check_float16(values: torch.Tensor, where: str) -> None:
    """Refuse what float16 cannot hold at all.

    Raises:
        InputError: a value beyond 65504.
    """
    largest = float(values.abs().max())
    if largest > torch.finfo(torch.float16).max:
        what = f"holds {largest:.3g}, and a Core ML package keeps weights in float16, up to 65504"
        raise InputError(where, what, "use `pte` or `onnx`")
