"""Which matrices go to 4 bits: those that cost least, of all sets that save enough.

In:  what each matrix costs and saves (sensitivity.py), bytes to save.
Out: names.

Costs are taken to add up. Then this is a knapsack: solved exactly by dynamic programming over bytes, in steps of their greatest
common divisor, so that no set that fits is better, and a larger size never costs more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mobile_export.quantize.sensitivity import Sensitivity

STEPS = 1 << 18  # at most: where no common divisor leaves so few, savings are rounded down to a step


def cheapest(sensitivities: Sequence[Sensitivity], must_save: int) -> frozenset[str]:
    """The names whose divergences sum to the least while their savings reach `must_save` bytes.

    Args:
        must_save: at most what all of them save; 0 or less chooses none.
    """
    assert must_save <= sum(s.saved_bytes for s in sensitivities), "asked for what is out of reach"
    if must_save <= 0:
        return frozenset()
    step = math.gcd(*(s.saved_bytes for s in sensitivities))
    step *= math.ceil(must_save / (STEPS * step))
    goal = math.ceil(must_save / step)
    saves = [s.saved_bytes // step for s in sensitivities]
    if sum(saves) < goal:
        return frozenset(s.name for s in sensitivities)  # what rounding down hides is needed to the last byte
    least = torch.full((goal + 1,), math.inf, dtype=torch.float64)  # cost of saving that many steps at least
    least[0] = 0
    left, taken = torch.arange(goal + 1), []
    for s, steps in zip(sensitivities, saves, strict=True):
        with_it = least[(left - steps).clamp_min(0)] + s.kl
        taken.append(with_it < least)
        least = torch.minimum(with_it, least)
    chosen, wanted = set(), goal
    for s, steps, took in reversed(list(zip(sensitivities, saves, taken, strict=True))):
        if took[wanted]:
            chosen.add(s.name)
            wanted = max(wanted - steps, 0)
    return frozenset(chosen)
