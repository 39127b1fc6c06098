"""Messages of the adb transport: six little-endian 32-bit words, then the data.

In and out: `Message`. A checksum (the sum of the bytes) is sent to peers older than version 0x01000001 and never checked,
as adbd does; the magic word (the command's complement) is checked.
Source: AOSP packages/modules/adb, docs/dev/protocol.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

VERSION_WITH_CHECKSUM = 0x01000000
VERSION = 0x01000001  # checksums are skipped from here on
MAX_DATA = 1 << 20  # bytes of data in one message; Android 9 and later
HEADER = struct.Struct("<6I")


class Command(IntEnum):
    """The name of each command, read as a little-endian word."""

    CNXN = int.from_bytes(b"CNXN", "little")
    AUTH = int.from_bytes(b"AUTH", "little")
    OPEN = int.from_bytes(b"OPEN", "little")
    OKAY = int.from_bytes(b"OKAY", "little")
    CLSE = int.from_bytes(b"CLSE", "little")
    WRTE = int.from_bytes(b"WRTE", "little")


AUTH_TOKEN, AUTH_SIGNATURE, AUTH_PUBLIC_KEY = 1, 2, 3  # arg0 of AUTH


class ProtocolError(Exception):
    """The peer sent what no adb sends: a wrong magic word, an unknown command, or too much data."""


class Message(NamedTuple):
    command: Command
    arg0: int
    arg1: int
    data: bytes | bytearray | memoryview = b""


def header(message: Message, *, version: int) -> bytes:
    """The 24 bytes before the data."""
    command, arg0, arg1, data = message
    checksum = sum(data) & 0xFFFFFFFF if version < VERSION else 0
    return HEADER.pack(command, arg0, arg1, len(data), checksum, command ^ 0xFFFFFFFF)


def read_message(receive: Callable[[int], bytearray]) -> Message:
    """Read one message; `receive(n)` gives exactly n bytes or raises EOFError.

    Raises:
        ProtocolError: see there.
    """
    command, arg0, arg1, length, _, magic = HEADER.unpack(receive(HEADER.size))
    if command ^ 0xFFFFFFFF != magic:
        raise ProtocolError(f"command {command:#010x} with magic {magic:#010x}")
    if command not in Command._value2member_map_:
        raise ProtocolError(f"unknown command {command:#010x}")
    if length > MAX_DATA:
        raise ProtocolError(f"{length} bytes in one message, at most {MAX_DATA} were offered")
    return Message(Command(command), arg0, arg1, receive(length) if length else b"")
