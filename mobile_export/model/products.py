"""Products of float32 matrices, by whichever of torch's two libraries is the faster one.

torch gives float32 to MKL, which leaves an AMD processor's widest registers unused. It carries oneDNN as well, which does use
them, and has it under an operator of its own.
"""

from __future__ import annotations

import torch
from torch import nn

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()  # elsewhere there is no choice


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: float32 [..., K], (N, K) and (N,) -> [..., N]. Without a gradient."""
    if not ONEDNN:
        return nn.functional.linear(x, weight, bias)
    # What lies in memory otherwise oneDNN may multiply one number at a time.
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), weight.contiguous(), bias, "none", [], "")
    return made


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b: float32 (M, K) and (K, N) -> (M, N)."""
    return linear(a, b.t())


class FastLinear(nn.Linear):
    """A Linear over float32 that takes the faster way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)
