"""Where the results of long work are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/mobile-export, or ~/.cache/mobile-export."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobile-export"
