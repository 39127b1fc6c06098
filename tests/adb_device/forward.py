"""The services `tcp:` and `local*:`: a socket on the phone, for `adb forward`."""

from __future__ import annotations

import socket
import threading

from adb_device.connection import Stream


def connect(name: str) -> socket.socket | None:
    """The socket that a service name such as "tcp:8080" or "localabstract:name" means, or None if nobody listens.

    The phone shares the host's network: its ports are the host's.
    """
    kind, _, address = name.partition(":")
    try:
        if kind == "tcp":
            return socket.create_connection(("127.0.0.1", int(address.partition(":")[0])))
        connected = socket.socket(socket.AF_UNIX)
        connected.connect("\0" + address)
        return connected
    except (OSError, ValueError):
        return None


def serve(connected: socket.socket, stream: Stream) -> None:
    """Pass bytes both ways until one side ends."""
    threading.Thread(target=_upstream, args=(connected, stream), daemon=True).start()
    with connected:
        while data := _received(connected):
            stream.write(data)


def _received(connected: socket.socket) -> bytes:
    try:
        return connected.recv(1 << 16)
    except ConnectionResetError:
        return b""


def _upstream(connected: socket.socket, stream: Stream) -> None:
    try:
        while data := stream.read_available():
            connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)
    except (EOFError, OSError):
        pass  # either side is gone; the other direction notices too
