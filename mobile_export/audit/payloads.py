"""What a file stores, and the verdict over it: payloads by content hash, copies, float matrices, bytes nothing refers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mobile_export.units import counted, megabytes

SMALL = 1024  # bytes: below it lie scalars, shapes and short vectors, where a second copy costs less than its padding
SHOWN = 8  # findings of a kind a person reads; the rest is counted


@dataclass(frozen=True)
class Payload:
    """One run of bytes in a file, SMALL or longer.

    names: every name it goes by; a tied table has two.
    dtype, shape: as the file states them; "" and None where it does not.
    offset: within `file`; None where the bytes lie inside a protobuf message.
    """

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...] | None
    bytes: int
    sha256: str
    file: str
    offset: int | None


@dataclass(frozen=True)
class Duplicate:
    """Equal bytes at several places. names: of each place in turn. bytes: of one copy. wasted_bytes: of all but one."""

    names: tuple[tuple[str, ...], ...]
    dtype: str
    shape: tuple[int, ...] | None
    bytes: int
    wasted_bytes: int


@dataclass(frozen=True)
class FloatMatrix:
    """A weight matrix in float. name: who uses it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Unused:
    """Bytes nothing refers to, more than alignment explains."""

    file: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Audit:
    """The verdict over one artifact.

    distinct: payloads of different content. stored_bytes: of all payloads, copies included.
    float_matrices: all there are; a finding only where float_expected is False.
    unread: what could not be looked into, a phrase each.
    """

    file: str
    payloads: tuple[Payload, ...]
    distinct: int
    stored_bytes: int
    duplicates: tuple[Duplicate, ...]
    float_matrices: tuple[FloatMatrix, ...]
    float_expected: bool
    unused: tuple[Unused, ...]
    unread: tuple[str, ...]

    @property
    def wasted_bytes(self) -> int:
        """Bytes that would be saved if every payload were stored once."""
        return sum(duplicate.wasted_bytes for duplicate in self.duplicates)

    @property
    def clean(self) -> bool:
        """Nothing twice, no float matrix that is not expected, nothing unused."""
        return not (self.duplicates or self.unused or (self.float_matrices and not self.float_expected))

    def lines(self) -> list[str]:
        """What a person reads, the largest finding of each kind first."""
        found = f"audit    {counted(len(self.payloads), 'payload')}, {megabytes(self.stored_bytes)}"
        stored = f"{self.distinct:,} distinct" if self.duplicates else "each stored once"
        floats = "float matrices are expected" if self.float_expected else "no matrix in float"
        if self.float_matrices and not self.float_expected:
            floats = f"{len(self.float_matrices):,} float {'matrix' if len(self.float_matrices) == 1 else 'matrices'}"
        return [
            f"{found}, {stored}; {floats}",
            *_shown("twice", [_copies(duplicate) for duplicate in self.duplicates]),
            *_shown("float", [] if self.float_expected else [_float(matrix) for matrix in self.float_matrices]),
            *_shown("unused", [f"{megabytes(gap.bytes)} of {gap.file} from byte {gap.offset:,}" for gap in self.unused]),
            *_shown("unread", self.unread),
        ]


def audit_of(
    file: str,
    payloads: Iterable[Payload],
    float_matrices: Iterable[FloatMatrix],
    float_expected: bool,
    unused: Iterable[Unused] = (),
    unread: Iterable[str] = (),
) -> Audit:
    """Group payloads by content, and sort each kind of finding by its bytes."""
    payloads = tuple(payloads)
    by_content: dict[tuple[str, int], list[Payload]] = defaultdict(list)
    for payload in payloads:
        by_content[payload.sha256, payload.bytes].append(payload)
    duplicates = [
        Duplicate(tuple(copy.names for copy in copies), copies[0].dtype, copies[0].shape, size, size * (len(copies) - 1))
        for (_, size), copies in by_content.items()
        if len(copies) > 1
    ]
    return Audit(
        file,
        payloads,
        len(by_content),
        sum(payload.bytes for payload in payloads),
        tuple(sorted(duplicates, key=lambda duplicate: -duplicate.wasted_bytes)),
        tuple(sorted(float_matrices, key=lambda matrix: -matrix.bytes)),
        float_expected,
        tuple(sorted(unused, key=lambda gap: -gap.bytes)),
        tuple(unread),
    )


def is_matrix(shape: Sequence[int]) -> bool:
    """Two dimensions or more that are not 1: a norm's weight, a bias or a row of constants is none."""
    return sum(size > 1 for size in shape) >= 2


def _shown(label: str, findings: Sequence[str]) -> list[str]:
    more = [f"and {len(findings) - SHOWN:,} more"] if len(findings) > SHOWN else []
    return [f"{label:8} {_printable(finding)}" for finding in (*findings[:SHOWN], *more)]


def _printable(finding: str) -> str:
    """Names come from the file: no line breaks, no terminal codes."""
    return "".join(sign if sign.isprintable() else "?" for sign in finding)


def _copies(duplicate: Duplicate) -> str:
    places = [names[0] for names in duplicate.names]
    listed = ", ".join(places[:4]) + (f" and {len(places) - 4:,} more" if len(places) > 4 else "")
    what = _what(duplicate.dtype, duplicate.shape)
    return f"{megabytes(duplicate.wasted_bytes)} too many, {len(places):,} copies{what}: {listed}"


def _float(matrix: FloatMatrix) -> str:
    return f"{megabytes(matrix.bytes)}{_what(matrix.dtype, matrix.shape)}: {matrix.name}"


def _what(dtype: str, shape: tuple[int, ...] | None) -> str:
    return (f" {dtype}" if dtype else "") + (f" {list(shape)}" if shape is not None else "")
