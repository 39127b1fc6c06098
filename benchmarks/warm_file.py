"""A file that is measured, in the page cache from the start, so that no disk is in the times."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WarmFile:
    """What was measured, to the byte."""

    path: str
    bytes: int
    sha256: str


def warm(path: Path) -> WarmFile:
    """Read a file whole, which brings it into the page cache."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WarmFile(str(path), path.stat().st_size, digest)
