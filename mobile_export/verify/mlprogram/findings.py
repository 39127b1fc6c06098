"""What a look at a package finds, without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mobile_export.units import counted


@dataclass(frozen=True)
class Finding:
    """One kind of thing found in one function, however often."""

    level: Literal["error", "warning"]  # it will not load on a device, or may run worse than it could
    check: Literal["types", "availability", "neural engine"]
    function: str
    count: int
    noun: str  # what was counted: "linear layer"
    what: str  # what is the matter with it
    cure: str  # what to do

    def sentence(self) -> str:
        """In one line: "warning: main: 211 linear layers of rank 3: ...; ..."."""
        return f"{self.level}: {self.advice()}"

    def advice(self) -> str:
        """The same without the level."""
        return f"{self.function}: {counted(self.count, self.noun)} {self.what}; {self.cure}"
