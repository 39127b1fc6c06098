"""Two profiles side by side: what got worse, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mobile_export.measure.profile import AtThreads, Profile


class Quantity(NamedTuple):
    """What is compared. more_is_better: a rate, where less is a regression. noise: below it, in its unit, nothing is told."""

    name: str
    value: Callable[[AtThreads], float]
    more_is_better: bool
    noise: float


QUANTITIES = (
    Quantity("decode, tokens/s", lambda at: at.decode_tokens_per_s.median, True, 0),
    Quantity("prefill, tokens/s", lambda at: at.prefill_tokens_per_s.median, True, 0),
    Quantity("first token, s", lambda at: at.first_token_s.median, False, 0.005),
    Quantity("load, s", lambda at: at.load_s.median, False, 0.005),
    Quantity("init, s", lambda at: at.init_s.median, False, 0.005),
    Quantity("dirty at end, MiB", lambda at: at.memory.dirty_at_end_mib, False, 0.5),
    Quantity("clean at end, MiB", lambda at: at.memory.clean_at_end_mib, False, 0.5),
    Quantity("peak RSS, MiB", lambda at: at.memory.peak_rss_mib, False, 0.5),
)


@dataclass(frozen=True)
class Change:
    """A quantity at a number of threads in two profiles. worse: what was lost, over what there was; negative: gained."""

    threads: int
    name: str
    before: float
    after: float
    worse: float
    regressed: bool


def compare(before: Profile, after: Profile, max_regression: float) -> list[Change]:
    """The changes at every number of threads that both profiles have; `regressed` where more than max_regression was lost.

    A change smaller than the quantity's noise is none: 2 ms of a 5 ms load say nothing.
    """
    changes = []
    counts = {each.threads: each for each in before.by_threads}
    for new in (each for each in after.by_threads if each.threads in counts):
        for quantity in QUANTITIES:
            was, now = quantity.value(counts[new.threads]), quantity.value(new)
            lost = was - now if quantity.more_is_better else now - was
            worse = lost / was if was else 0.0
            regressed = worse > max_regression and lost > quantity.noise
            changes.append(Change(new.threads, quantity.name, was, now, worse, regressed))
    return changes
