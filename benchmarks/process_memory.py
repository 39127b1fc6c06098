"""What this process keeps resident above what it held after its imports."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Resident:
    """Resident memory of this process above what it held after its imports.

    dirty_mib: anonymous pages (RssAnon): what a phone kills for.
    clean_mib: file-backed pages (RssFile), the model's and the libraries': what a phone evicts.
    """

    dirty_mib: float
    clean_mib: float


class ImportsMemory:
    """Resident memory now, after the imports, and with it what comes above it later."""

    def __init__(self) -> None:
        _return_freed_memory()
        _reset_peak()
        self.dirty_mib, self._clean_mib = _memory_mib()

    @property
    def mib(self) -> float:
        return self.dirty_mib + self._clean_mib

    def above(self) -> Resident:
        dirty_mib, clean_mib = _memory_mib()
        return Resident(dirty_mib - self.dirty_mib, clean_mib - self._clean_mib)

    def peak_mib(self) -> float:
        """Most ever resident (VmHWM) above the imports."""
        return int(dict(_colon_lines("/proc/self/status"))["VmHWM"].split()[0]) / 1024 - self.mib


def process_threads() -> int:
    return int(dict(_colon_lines("/proc/self/status"))["Threads"])


def _return_freed_memory() -> None:
    """Free pages the imports left in the heap would take in what the model allocates, and hide it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak() -> None:
    """Restart VmHWM from the present, where the kernel lets us (clear_refs, proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory_mib() -> tuple[float, float]:
    """Anonymous and file-backed resident MiB, exact: smaps_rollup walks the pages, the counters of status lag."""
    sizes = {key: int(value.split()[0]) / 1024 for key, value in _colon_lines("/proc/self/smaps_rollup")}
    return sizes["Anonymous"], sizes["Rss"] - sizes["Anonymous"]


def _colon_lines(path: str) -> Iterator[tuple[str, str]]:
    for line in Path(path).read_text().splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            yield key, value.strip()
