"""What the kernel says this process keeps resident (proc(5)), and what it keeps of files."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

from mobile_export.measure.measurement import Resident


def forget_imports() -> None:
    """Give freed pages back and restart the peak, so that what the imports took is not counted as the model's.

    Free pages left in the heap would take in what the model allocates, and hide it.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # where the kernel does not let us, the peak includes the imports'
        Path("/proc/self/clear_refs").write_text("5")


def drop_from_page_cache(path: Path) -> None:
    """Ask the kernel to keep nothing of a file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages not yet written are not dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> Resident:
    """Resident memory now, exact: smaps_rollup walks the pages, the counters of status lag behind."""
    rollup = "/proc/self/smaps_rollup"
    anonymous = _kib(rollup, "Anonymous")
    return Resident(anonymous, _kib(rollup, "Rss") - anonymous, _kib(rollup, "Pss"))


def peak_rss_kib() -> int:
    """Most ever resident."""
    return _kib("/proc/self/status", "VmHWM")


def _kib(file: str, key: str) -> int:
    lines = Path(file).read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
