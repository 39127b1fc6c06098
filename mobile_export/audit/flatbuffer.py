"""Tables of a flatbuffer, read in place. Every step is checked against the bytes there are: the file may be anybody's.

A field is named by its number in the schema, a union taking two: its type, then its value.
Source: flatbuffers.dev/internals (offsets, vtables, vectors).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mobile_export.errors import InputError

INT16, UINT16, INT32, UINT32, INT64, UINT64, INT8, UINT8 = "<h", "<H", "<i", "<I", "<q", "<Q", "<b", "<B"
AGAIN = "export or download it again"


class Flatbuffer:
    """One flatbuffer. where: for errors."""

    def __init__(self, where: str, data: memoryview) -> None:
        self.where, self.data = where, data
        self.entries_left = 4 * len(data) + 1024  # every entry has bytes of its own, and each vector is read a few times

    def root(self) -> Table:
        """The table the flatbuffer begins with."""
        return Table(self, self.number(UINT32, 0))

    def number(self, form: str, at: int) -> int:
        """The integer at a position."""
        if at < 0 or at + struct.calcsize(form) > len(self.data):
            raise self.damaged(f"byte {at:,} of a flatbuffer of {len(self.data):,}")
        return int(struct.unpack_from(form, self.data, at)[0])

    def vector(self, at: int, width: int) -> tuple[int, int]:
        """Position of the first entry and number of entries of the vector at a position."""
        length = self.number(UINT32, at)
        self.entries_left -= length
        if at + 4 + length * width > len(self.data) or self.entries_left < 0:
            raise self.damaged(f"{length:,} entries at byte {at:,} of a flatbuffer of {len(self.data):,}")
        return at + 4, length

    def damaged(self, what: str) -> InputError:
        """The error to raise for bytes that lead nowhere."""
        return InputError(self.where, f"is damaged or cut off ({what})", AGAIN)


@dataclass(frozen=True)
class Table:
    """One table; a field that is absent reads as 0, "", None or empty."""

    buffer: Flatbuffer
    position: int

    def number(self, field: int, form: str) -> int:
        """An integer or enum."""
        at = self._at(field)
        return self.buffer.number(form, at) if at else 0

    def table(self, field: int) -> Table | None:
        """Another table."""
        at = self._at(field)
        return Table(self.buffer, at + self.buffer.number(UINT32, at)) if at else None

    def tables(self, field: int) -> list[Table]:
        """A vector of tables."""
        begin, length = self._vector(field, 4)
        entries = range(begin, begin + 4 * length, 4)
        return [Table(self.buffer, entry + self.buffer.number(UINT32, entry)) for entry in entries]

    def numbers(self, field: int, form: str) -> tuple[int, ...]:
        """A vector of integers."""
        width = struct.calcsize(form)
        begin, length = self._vector(field, width)
        return tuple(self.buffer.number(form, begin + width * i) for i in range(length))

    def text(self, field: int) -> str:
        """A string; bytes that are no UTF-8 are replaced, for it is only shown or compared."""
        begin, length = self.span(field)
        return bytes(self.buffer.data[begin : begin + length]).decode(errors="replace")

    def span(self, field: int) -> tuple[int, int]:
        """Position and length of a vector of bytes."""
        at = self._at(field)
        if not at:
            return 0, 0
        begin = at + self.buffer.number(UINT32, at)
        length = self.buffer.number(UINT32, begin)
        if begin + 4 + length > len(self.buffer.data):
            raise self.buffer.damaged(f"{length:,} bytes at byte {begin:,} of a flatbuffer of {len(self.buffer.data):,}")
        return begin + 4, length

    def _vector(self, field: int, width: int) -> tuple[int, int]:
        at = self._at(field)
        return self.buffer.vector(at + self.buffer.number(UINT32, at), width) if at else (0, 0)

    def _at(self, field: int) -> int:
        """Position of a field, 0 if it is absent."""
        vtable = self.position - self.buffer.number(INT32, self.position)
        slot = 4 + 2 * field
        if slot + 2 > self.buffer.number(UINT16, vtable):
            return 0
        offset = self.buffer.number(UINT16, vtable + slot)
        return self.position + offset if offset else 0
