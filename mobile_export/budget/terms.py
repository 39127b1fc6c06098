"""The terms of a memory estimate, and what they add up to: dirty and clean apart, while loading and while running."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mobile_export.budget.interval import NOTHING, Interval, largest, total

MIB = 2**20


@dataclass(frozen=True)
class Term:
    """One reason for resident memory, in bytes.

    dirty: anonymous pages, which a phone cannot take back: it kills for them.
    clean: pages of a file, which it can drop and read again.
    when: "always" once it is there; "load" or "run": only then, so the two never add up.
    """

    name: str
    dirty: Interval = NOTHING
    clean: Interval = NOTHING
    when: Literal["always", "load", "run"] = "always"
    why: str = ""

    @property
    def bytes(self) -> Interval:
        return self.dirty + self.clean


@dataclass(frozen=True)
class MemoryEstimate:
    """What a process keeps resident for a model, as terms. Bytes."""

    terms: tuple[Term, ...]

    def during(self, when: Literal["load", "run"]) -> tuple[Term, ...]:
        """The terms that are there at one of the two moments."""
        return tuple(term for term in self.terms if term.when in ("always", when))

    @property
    def peak_terms(self) -> tuple[Term, ...]:
        """The terms of the moment when most is resident: they add up to what is likely at the peak."""
        return max((self.during("load"), self.during("run")), key=lambda terms: total(t.bytes for t in terms).likely)

    @property
    def peak(self) -> Interval:
        """Most resident at any moment, dirty and clean."""
        return self._most(lambda term: term.bytes)

    @property
    def peak_dirty(self) -> Interval:
        """Most dirty at any moment."""
        return self._most(lambda term: term.dirty)

    def without(self, names: Iterable[str]) -> MemoryEstimate:
        """The estimate with some terms left out."""
        left_out = set(names)
        return MemoryEstimate(tuple(term for term in self.terms if term.name not in left_out))

    def _most(self, of: Callable[[Term], Interval]) -> Interval:
        return largest([total(map(of, self.during("load"))), total(map(of, self.during("run")))])
