"""GPTQ: round a matrix column by column, each column's error made good by the columns that are still to come.

In:  float32 weight (out_features, in_features) and the second moments of its inputs (in_features, in_features).
Out: QuantizedWeight, as clip_search gives it: the same codes' range, scales that bfloat16 holds exactly.

What is made small is sum over inputs x of |W x - Q x|**2, row by row (w - q) H (w - q) with H the second moments.
Source: GPTQ (arXiv:2210.17323), algorithm 1 with activation order; the sweeps after it as in QuantEase (arXiv:2309.01885).
"""

from __future__ import annotations

import torch

from mobile_export.quantize.clip_search import TINY, QuantizedWeight, code_range, quantize_weight
from mobile_export.quantize.recipe import Precision

DAMPING = 0.01  # of the mean diagonal, added to it: the paper's
BLOCK = 64  # columns whose errors are passed on together
SWEEPS = 3  # over all columns, after the first pass


def gptq(weight: torch.Tensor, moments: torch.Tensor, precision: Precision, sweeps: int = SWEEPS) -> QuantizedWeight:
    """Codes and scales with little error on inputs of these second moments.

    The scales are chosen first, by the clipping search with every input's mean square for its importance, and stay: so the
    columns can be taken in the order of importance at no cost when the codes are used. A row that comes out worse than
    rounded to nearest is rounded to nearest. Then sweeps: the scales that fit the codes best, and for every column the codes
    that are best given all others; neither makes a row worse.

    Args:
        weight: finite.
        moments: float32, sum of x x^T over inputs x; symmetric, positive semidefinite.
        precision: 4 or 8 bits; group_size divides in_features.
    """
    hessian = damped(moments)
    nearest = quantize_weight(weight, precision, hessian.diagonal().float())
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    low, high = code_range(precision)
    group = precision.group_size or weight.shape[1]

    # Transposed from here on: a column's values lie side by side, and it is columns that are worked on.
    wanted, scales = weight.t()[order].contiguous(), nearest.scales
    by_order = hessian[order][:, order]
    spread = _spread(scales, group)[order]
    codes = _first_pass(wanted, spread, _inverse_factor(by_order).float(), low, high)
    exact = by_order.float()
    rounded = nearest.codes.t()[order].float()
    worse = _errors(wanted - codes * spread, exact) > _errors(wanted - rounded * spread, exact)
    codes = torch.where(worse, rounded, codes)
    for _ in range(sweeps):
        scales = _refitted(wanted, codes, scales, exact, order // group)
        codes = _swept(wanted, codes, _spread(scales, group)[order], exact, low, high)
    in_place = torch.empty_like(codes)
    in_place[order] = codes
    return QuantizedWeight(in_place.t().contiguous().to(torch.int8), scales, precision)


def damped(moments: torch.Tensor) -> torch.Tensor:
    """Moments with a part of their mean diagonal added to it, float64: invertible, and inputs never seen count a little."""
    hessian = moments.double()
    mean = hessian.diagonal().mean()
    return hessian + torch.eye(len(hessian), dtype=torch.float64) * (DAMPING * mean if mean > 0 else 1)


def _spread(scales: torch.Tensor, group: int) -> torch.Tensor:
    """Scales (rows, groups) for every column: (columns, rows)."""
    return scales.t().repeat_interleave(group, dim=0)


def _errors(off: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """What each row is off by, (columns, rows), weighed by the hessian: (rows,)."""
    return (off * (hessian @ off)).sum(dim=0)


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse: its row i says how to spread the error of column i over those after."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)


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
        left[stop:] -= factor[start:stop, stop:].t() @ passed_on
    return codes


def _refitted(
    wanted: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    """For every row the scales that fit its codes best, (rows, groups), rounded to bfloat16; the old where those are better.

    Setting the derivative of (w - q) H (w - q) by the scales to zero is a linear system a row, as wide as it has groups.

    Args:
        groups: int64 (columns,), the group each column belongs to.
    """
    rows, count = scales.shape
    system = torch.zeros(count, count, rows)
    for g in range(count):
        mine = groups == g
        system[g].index_add_(0, groups, codes * (hessian[:, mine] @ codes[mine]))
    system = system.permute(2, 0, 1).double()
    wants = torch.zeros(count, rows).index_add_(0, groups, codes * (hessian @ wanted)).t().double()
    old = scales.double()
    ridge = 1e-6 * system.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True) + TINY
    missing = wants - (system @ old[..., None])[..., 0]
    step = torch.linalg.solve(system + torch.diag_embed(ridge.expand(rows, count)), missing)
    new = (old + step).to(torch.bfloat16).double()
    new = torch.where((new > old / 2) & (new < old * 2), new, old)  # never 0 or negative, whatever an idle group asks for

    def cost(of: torch.Tensor) -> torch.Tensor:  # less what does not depend on the scales
        return ((system @ of[..., None])[..., 0] * of - 2 * wants * of).sum(dim=1, keepdim=True)

    return torch.where(cost(new) < cost(old), new, old).float()


def _swept(
    wanted: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor, low: int, high: int
) -> torch.Tensor:
    """One sweep over all columns: each gets the codes that are best given those of all others. (columns, rows)."""
    codes = codes.clone()
    slope = hessian @ (wanted - codes * scales)  # minus half the derivative by a column's values
    for start in range(0, len(wanted), BLOCK):
        stop = min(start + BLOCK, len(wanted))
        inner, moved = hessian[start:stop, start:stop], torch.empty_like(wanted[start:stop])
        here = slope[start:stop]
        for i in range(stop - start):
            old, scale = codes[start + i], scales[start + i]
            code = _round(old * scale + here[i] / inner[i, i], scale, low, high)
            moved[i] = (code - old) * scale
            codes[start + i] = code
            here -= inner[:, i, None] * moved[i]
        slope[:start] -= hessian[:start, start:stop] @ moved
        slope[stop:] -= hessian[stop:, start:stop] @ moved
    return codes
