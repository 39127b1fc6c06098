"""Ranges of mapped files -> payloads. The same range under two names is one payload; ranges that half overlap are refused."""

from __future__ import annotations

import hashlib
import itertools
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobile_export.audit.payloads import SMALL, Payload, Unused
from mobile_export.errors import InputError

PADDING = 1 << 16  # bytes: the coarsest alignment a writer uses, Windows' granularity for mapped files
CHUNK = 1 << 24  # bytes hashed at a time
AGAIN = "export or download it again"


@dataclass(frozen=True)
class Range:
    """A name for `bytes` bytes of `file` from `offset`, and what it says they are."""

    name: str
    file: str
    offset: int
    bytes: int
    dtype: str = ""
    shape: tuple[int, ...] | None = None

    @property
    def place(self) -> tuple[str, int, int]:
        """Where the bytes lie: two ranges of one place are one payload."""
        return self.file, self.offset, self.bytes


def map_file(path: Path) -> memoryview:
    """A regular file's bytes, read-only. Unmapped when the last view of them is gone.

    Raises:
        InputError: no such file, not a regular one, empty, or not readable.
    """
    try:
        if not path.exists():
            raise InputError(str(path), "no such file", "name an artifact's file")
        if not path.is_file():
            raise InputError(str(path), "not a regular file", "name an artifact's file")
        if path.stat().st_size == 0:
            raise InputError(str(path), "is empty", AGAIN)
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check its name and permissions") from None


def payloads_of(views: Mapping[str, memoryview], ranges: Iterable[Range]) -> list[Payload]:
    """Hash every place once, in the order of the file.

    Args:
        views: file name -> its bytes.
    Raises:
        InputError: a range beyond its file, or two that overlap without being the same.
    """
    places: dict[tuple[str, int, int], list[Range]] = {}
    for found in sorted(ranges, key=lambda found: found.place):
        size = len(views[found.file])
        if found.offset < 0 or found.bytes < 0 or found.offset + found.bytes > size:
            what = f"{found.name}: {found.bytes:,} bytes from byte {found.offset:,} leave the file's {size:,}"
            raise InputError(found.file, what, AGAIN)
        if found.bytes:
            places.setdefault(found.place, []).append(found)
    _refuse_overlaps(list(places))
    return [_payload(views[file], named) for (file, _, size), named in places.items() if size >= SMALL]


def unused(file: str, size: int, used: Iterable[tuple[int, int]]) -> list[Unused]:
    """The gaps longer than PADDING between (begin, end) pairs, and after the last."""
    gaps, end = [], 0
    for begin, stop in sorted([*used, (size, size)]):
        if begin - end > PADDING:
            gaps.append(Unused(file, end, begin - end))
        end = max(end, stop)
    return gaps


def digest(data: memoryview) -> str:
    """SHA-256 in hexadecimal."""
    hashed = hashlib.sha256()
    for begin in range(0, len(data), CHUNK):
        hashed.update(data[begin : begin + CHUNK])
    return hashed.hexdigest()


def _refuse_overlaps(places: Sequence[tuple[str, int, int]]) -> None:
    for (file, offset, size), (other, begin, length) in itertools.pairwise(places):
        if file == other and begin < offset + size:
            what = f"{size:,} bytes from byte {offset:,} overlap {length:,} from byte {begin:,}"
            raise InputError(file, what, AGAIN)


def _payload(view: memoryview, named: Sequence[Range]) -> Payload:
    first = next((found for found in named if found.dtype), named[0])
    names = tuple(dict.fromkeys(found.name for found in named))
    content = view[first.offset : first.offset + first.bytes]
    return Payload(names, first.dtype, first.shape, first.bytes, digest(content), first.file, first.offset)
