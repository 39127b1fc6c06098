"""What a token costs the battery, under assumptions that are stated: nothing of it was measured.

The MobileLLM paper (arXiv:2402.14905, introduction): 0.1 J a token for every billion parameters, and a charged iPhone
holds about 50 kJ. Its parameters are of 8 bits, so the same figure is 0.1 J a GB streamed: where fewer bytes or shared
blocks make the two differ, they are the ends of the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobile_export.budget.facts import ModelFacts
from mobile_export.budget.interval import Interval

JOULES_A_BILLION = 0.1
BATTERY_JOULES = 50_000


@dataclass(frozen=True)
class Energy:
    """joules_a_token, and what it means for the battery assumed."""

    joules_a_token: Interval
    tokens_a_percent: Interval


def predict_energy(facts: ModelFacts, streamed_bytes: int) -> Energy:
    """Energy of one decoded token. streamed_bytes: what it reads from DRAM."""
    executed = sum(kind.work.parameters * kind.count for kind in facts.executions)
    executed += sum(work.parameters for work in facts.outer_work)
    by_parameters, by_bytes = JOULES_A_BILLION * executed / 1e9, JOULES_A_BILLION * streamed_bytes / 1e9
    low, high = sorted((by_parameters, by_bytes))
    joules = Interval(low, (low + high) / 2, high)
    return Energy(joules, joules.per(BATTERY_JOULES / 100))
