"""The TCP link to the adb server."""

from __future__ import annotations

import socket
import threading
import time


class Link:
    """Whole reads and whole writes on one connected socket, at a limited speed if asked."""

    def __init__(self, connected: socket.socket, bytes_per_s: int | None = None) -> None:
        self._socket = connected
        self._bytes_per_s = bytes_per_s
        self._writing = threading.Lock()

    def receive(self, size: int) -> bytearray:
        """Exactly `size` bytes.

        Raises:
            EOFError: the link is closed, by either side.
        """
        data = bytearray(size)
        left = memoryview(data)
        while left:
            try:
                count = self._socket.recv_into(left)
            except OSError as error:
                raise EOFError from error
            if not count:
                raise EOFError
            self._pace(count)
            left = left[count:]
        return data

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send all parts, with nothing of another thread's in between.

        Raises:
            EOFError: the link is closed, by either side.
        """
        with self._writing:
            try:
                # At once: a header in a packet of its own costs the reader a wake-up and, after an OKAY, 40 ms.
                data = b"".join(parts)
                step = max(1, len(data) if self._bytes_per_s is None else self._bytes_per_s // 50)
                for start in range(0, len(data), step):
                    self._socket.sendall(data[start : start + step])
                    self._pace(len(data[start : start + step]))
            except OSError as error:
                raise EOFError from error

    def cut(self) -> None:
        """Break the connection; both sides see its end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # broken already

    def close(self) -> None:
        self.cut()
        self._socket.close()

    def _pace(self, count: int) -> None:
        if self._bytes_per_s is not None:
            time.sleep(count / self._bytes_per_s)
