"""A quantity that is not known exactly: least, likely, most. Sums of them carry what is not known to the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """low <= likely <= high, all in one unit."""

    low: float
    likely: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.likely <= self.high, self

    def __add__(self, other: Interval) -> Interval:
        """The sum, each end with its like: parts that are wrong may be wrong in the same direction."""
        return Interval(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def minus(self, other: Interval) -> Interval:
        """The difference: most of it where most is there and least is taken."""
        return Interval(self.low - other.high, self.likely - other.likely, self.high - other.low)

    def times(self, factor: float) -> Interval:
        """Scaled by a factor of 0 or more."""
        return Interval(self.low * factor, self.likely * factor, self.high * factor)

    def per(self, amount: float) -> Interval:
        """amount / self: the time an amount takes at a rate, the rate a time gives."""
        return Interval(amount / self.high, amount / self.likely, amount / self.low)


NOTHING = Interval(0, 0, 0)


def exactly(value: float) -> Interval:
    """A quantity that is known."""
    return Interval(value, value, value)


def total(parts: Iterable[Interval]) -> Interval:
    """The sum of all parts, each end with its like."""
    return sum(parts, NOTHING)


def largest(parts: Iterable[Interval]) -> Interval:
    """The largest, end by end."""
    several = list(parts)
    return Interval(max(p.low for p in several), max(p.likely for p in several), max(p.high for p in several))
