"""The service `sync:`: file status, listings, push and pull.

Requests are a four-letter id, a length and a path; version 2 of a request carries wider numbers and error codes.
After a failed push the service ends, as adbd's does.
Source: AOSP packages/modules/adb, docs/dev/sync.md, file_sync_protocol.h, daemon/file_sync_service.cpp.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from adb_device.connection import Stream
from adb_device.faults import Faults, Strikes
from adb_device.protocol import ProtocolError
from adb_device.root import Root

CHUNK = 1 << 16  # bytes in one DATA, at most
STAT_V2 = struct.Struct("<4sIQQIIIIQqqq")  # id, error, dev, ino, mode, nlink, uid, gid, size, atime, mtime, ctime
SHELL = 2000  # the user and group of adb's shell


class Sync:
    """Answers the sync requests of one phone."""

    def __init__(self, root: Root, *, faults: Faults, strikes: Strikes) -> None:
        self._root = root
        self._faults = faults
        self._strikes = strikes

    def serve(self, stream: Stream) -> None:
        """Answer requests until QUIT, or until one fails in a way that ends the service."""
        while True:
            request, size = struct.unpack("<4sI", stream.read(8))
            if request == b"QUIT":
                return
            if size > 1024:
                _fail(stream, "path too long")
                return
            path = stream.read(size).decode(errors="surrogateescape")
            if request == b"STAT":
                stream.write(self._status(path))
            elif request in (b"STA2", b"LST2"):
                stream.write(self._status_v2(request, path))
            elif request in (b"LIST", b"LIS2"):
                stream.write(self._listing(request, path))
            elif request == b"RECV":
                if not self._send_file(stream, path):
                    return
            elif request == b"SEND":
                name, _, mode = path.rpartition(",")
                if not self._receive_file(stream, name, int(mode, 0)):
                    return
            else:
                _fail(stream, f"unknown command {request.decode(errors='replace')}")
                return

    def _status(self, path: str) -> bytes:
        try:
            found = self._root.lstat(path)
        except OSError:
            return b"STAT" + bytes(12)
        return b"STAT" + struct.pack("<3I", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))

    def _status_v2(self, request: bytes, path: str) -> bytes:
        try:
            found = self._root.stat(path) if request == b"STA2" else self._root.lstat(path)
        except OSError as error:
            return STAT_V2.pack(request, error.errno or errno.EIO, *[0] * 10)
        return _pack_v2(request, found)

    def _listing(self, request: bytes, path: str) -> bytes:
        listing = bytearray()
        try:
            names = self._root.names(path)
        except OSError:
            names = []  # adbd sends an empty listing too
        for name in names:
            found = self._root.lstat(f"{path}/{name}")
            encoded = os.fsencode(name)
            if request == b"LIS2":
                listing += _pack_v2(b"DNT2", found)
            else:
                listing += b"DENT" + struct.pack("<3I", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
            listing += struct.pack("<I", len(encoded)) + encoded
        return bytes(listing) + b"DONE" + bytes(STAT_V2.size if request == b"LIS2" else 16)

    def _send_file(self, stream: Stream, path: str) -> bool:
        try:
            source = self._root.open_to_read(path)
        except OSError as error:
            _fail(stream, f"open failed: {error.strerror}")
            return False
        rubbish = None
        if self._faults.rubbish_pull and self._strikes.strike():
            rubbish = random.Random(self._faults.seed)
        with source:
            done = b""
            while not done:  # fewer, larger messages than one for each DATA
                block = source.read(15 * CHUNK)
                done = b"" if len(block) == 15 * CHUNK else b"DONE" + bytes(4)
                if rubbish is not None:
                    block = rubbish.randbytes(rubbish.randrange(1, 2 * len(block) + 2))
                stream.write(b"".join((*_chunks(block), done)))
        return True

    def _receive_file(self, stream: Stream, path: str, mode: int) -> bool:
        try:
            target = self._root.create(path)
        except OSError as error:
            _fail(stream, f"couldn't create file: {error.strerror}")
            _throw_away(stream)
            return False
        received = 0
        try:
            with target:
                while isinstance(block := _next_block(stream), bytes):
                    received += len(block)
                    self._strike(stream, Path(target.name), received)
                    if _beyond(received, self._faults.disk_full_after):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    target.write(block)
        except OSError as error:
            Path(target.name).unlink()
            _fail(stream, f"couldn't write: {error.strerror}")
            _throw_away(stream)
            return False
        except (EOFError, ProtocolError):  # adbd leaves no half file either
            Path(target.name).unlink(missing_ok=True)
            raise
        Path(target.name).chmod(mode & 0o700 | (mode & 0o700) >> 3 | (mode & 0o700) >> 6)  # as adbd: everyone as the owner
        os.utime(target.name, (block, block))
        stream.write(b"OKAY" + bytes(4))
        return True

    def _strike(self, stream: Stream, target: Path, received: int) -> None:
        if _beyond(received, self._faults.cut_push_after) and self._strikes.strike():
            target.unlink()  # before anybody can look
            stream.connection.link.cut()
            raise EOFError
        if _beyond(received, self._faults.hang_push_after) and self._strikes.strike():
            stream.wait_closed()
            raise EOFError


def _beyond(received: int, limit: int | None) -> bool:
    return limit is not None and received > limit


def _next_block(stream: Stream) -> bytes | int:
    """The bytes of the next DATA, or at DONE the file's time in seconds."""
    kind, size = struct.unpack("<4sI", stream.read(8))
    if kind == b"DONE":
        return size
    if kind != b"DATA" or size > CHUNK:
        raise ProtocolError(f"{kind!r} of {size} bytes in a push")
    return stream.read(size)


def _throw_away(stream: Stream) -> None:
    """The rest of a push that has failed."""
    while isinstance(_next_block(stream), bytes):
        pass


def _chunks(block: bytes) -> Iterator[bytes]:
    for start in range(0, len(block), CHUNK):
        piece = block[start : start + CHUNK]
        yield b"DATA" + struct.pack("<I", len(piece))
        yield piece


def _pack_v2(request: bytes, found: os.stat_result) -> bytes:
    times = int(found.st_atime), int(found.st_mtime), int(found.st_ctime)
    numbers = found.st_dev, found.st_ino, found.st_mode, found.st_nlink, SHELL, SHELL, found.st_size
    return STAT_V2.pack(request, 0, *numbers, *times)


def _fail(stream: Stream, reason: str) -> None:
    encoded = reason.encode()
    stream.write(b"FAIL" + struct.pack("<I", len(encoded)) + encoded)
