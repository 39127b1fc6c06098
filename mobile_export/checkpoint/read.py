"""One tensor's values as float32, checked: the form every later step computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobile_export.checkpoint.contents import StoredTensor
from mobile_export.errors import InputError
from mobile_export.units import counted

if TYPE_CHECKING:
    import torch


def read_float32(tensor: StoredTensor) -> torch.Tensor:
    """float32, contiguous, `tensor.shape`, every value finite. Do not write into it: it may be the file itself.

    Raises:
        InputError: a value is NaN, infinite or beyond float32, or the tensor holds integers.
    """
    import torch

    stored = tensor.read()
    if not stored.is_floating_point():
        raise InputError(tensor.where, f"holds {tensor.dtype}, not floating-point weights", "export the unquantized checkpoint")
    values = stored.to(torch.float32).contiguous()
    finite = torch.isfinite(values)
    if not finite.all():
        bad = (~finite).nonzero()
        raise InputError(
            tensor.where,
            f"{counted(len(bad), 'value')} of {values.numel():,} not finite, the first at {tuple(bad[0].tolist())}",
            "the checkpoint is damaged or its training diverged: use another one",
        )
    return values
