"""GPTQ: round a matrix column by column, each column's error made good by the columns that are still to come.

In:  float32 weight (out_features, in_features), and of its inputs the damped second moments (in_features, in_features).
Out: QuantizedWeight, as clip_search gives it: the same codes' range, scales that bfloat16 holds exactly.

What is made small is sum over inputs x of |W x - Q x|**2, row by row (w - q) H (w - q) with H the second moments.
Source: GPTQ (arXiv:2210.17323), algorithm 1 with activation order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mobile_export.model.products import product
from mobile_export.quantize.clip_search import QuantizedWeight, code_range, quantize_weight
from mobile_export.quantize.recipe import Precision

DAMPING = 0.01  # of the mean diagonal, added to it: the paper's
BLOCK = 64  # columns whose errors are passed on together


@dataclass(frozen=True)
class Inputs:
    """The inputs of matrices as GPTQ takes them: what all their rows have in common.

    squares: what each input counts, (in_features,). order: the columns, the most important first.
    hessian: of the columns in that order. factor: the upper Cholesky factor of its inverse, whose row i says how to spread the
        error of column i over those after; float32 (in_features, in_features).
    """

    squares: torch.Tensor
    order: torch.Tensor
    hessian: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, hessian: torch.Tensor) -> Inputs:
        """hessian: float64, sum of x x^T over inputs x, as `damped` gives it; symmetric, positive definite."""
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        by_order = hessian[order][:, order]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(by_order))
        factor = torch.linalg.cholesky(inverse, upper=True)
        return cls(hessian.diagonal().float(), order, by_order.float(), factor.float())


def gptq(weight: torch.Tensor, inputs: Inputs, precision: Precision) -> QuantizedWeight:
    """Codes and scales with little error on these inputs; every row by itself.

    The scales are chosen first, by the clipping search with every input's mean square for its importance, and stay: so the
    columns can be taken in the order of importance at no cost when the codes are used. A row that comes out worse than
    rounded to nearest is rounded to nearest.

    Args:
        weight: finite.
        precision: 4 or 8 bits; group_size divides in_features.
    """
    nearest = quantize_weight(weight, precision, inputs.squares)
    low, high = code_range(precision)
    order, scales = inputs.order, nearest.scales

    # Transposed from here on: a column's values lie side by side, and it is columns that are worked on.
    wanted = weight.t()[order].contiguous()
    spread = scales.t().repeat_interleave(precision.group_size or weight.shape[1], dim=0)[order]
    codes = _first_pass(wanted, spread, inputs.factor, low, high)
    rounded = nearest.codes.t()[order].float()
    worse = _errors(wanted - codes * spread, inputs.hessian) > _errors(wanted - rounded * spread, inputs.hessian)
    codes = torch.where(worse, rounded, codes)
    in_place = torch.empty_like(codes)
    in_place[order] = codes
    return QuantizedWeight(in_place.t().contiguous().to(torch.int8), scales, precision)


def damped(moments: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Moments with a part of the mean square added to every input's, float64: invertible, and inputs never seen count a little.

    Args:
        moments: float32, sum of x x^T over inputs x; symmetric, positive semidefinite.
        columns: what the inputs were divided by, (in_features,). As much is added as if they had not been: channels that were
            brought to one size would otherwise all be trusted alike, the noise of the weak ones too.
    """
    hessian, squares = moments.double(), columns.double().square()
    mean = (hessian.diagonal() * squares).mean()
    return hessian + torch.diag((DAMPING * mean if mean > 0 else 1) / squares)


def _errors(off: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """What each row is off by, (columns, rows), weighed by the hessian: (rows,)."""
    return (off * product(hessian, off)).sum(dim=0)


def _round(values: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return (values / scale).round_().clamp_(low, high)


def _first_pass(wanted: torch.Tensor, scales: torch.Tensor, factor: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Codes (columns, rows). wanted, scales: (columns, rows), in the order they are taken."""
    left, codes = wanted.clone(), torch.empty_like(wanted)
    for start in range(0, len(wanted), BLOCK):
        stop = min(start + BLOCK, len(wanted))
        here, passed_on = left[start:stop], torch.empty_like(left[start:stop])
        inner = factor[start:stop, start:stop]
        for i in range(stop - start):
            code = _round(here[i], scales[start + i], low, high)
            codes[start + i] = code
            passed_on[i] = (here[i] - code * scales[start + i]) / inner[i, i]
            here[i:] -= inner[i, i:, None] * passed_on[i]
        left[stop:] -= product(factor[start:stop, stop:].t(), passed_on)
    return codes
