"""What a verification found: each check with its figure, its limit and the limit's reason."""

from __future__ import annotations

from dataclasses import dataclass

from mobile_export.manifest import Verified, VerifiedCheck

SAME_NUMBERS = "the same codes and scales in plain PyTorch"  # the oracle of a quantized artifact


@dataclass(frozen=True)
class Check:
    """One comparison. `measured` and `limit` are errors relative to the largest reference logit, unless named otherwise."""

    name: str
    measured: float
    limit: float
    reason: str

    @property
    def passed(self) -> bool:
        return self.measured <= self.limit  # False for NaN, too


@dataclass(frozen=True)
class Verification:
    """All checks of one artifact. oracle: what it was held against. tokens: how many positions were compared."""

    oracle: str
    tokens: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def recorded(self) -> Verified:
        """The form the manifest keeps."""
        checks = [VerifiedCheck(c.name, c.measured, c.limit, c.reason, c.passed) for c in self.checks]
        return Verified(self.oracle, self.passed, checks)

    def failures(self) -> list[str]:
        """One phrase per failed check."""
        return [f"{c.name}: {c.measured:.2g}, limit {c.limit:.2g} ({c.reason})" for c in self.checks if not c.passed]
