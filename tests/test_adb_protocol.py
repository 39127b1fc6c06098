"""The device daemon's side of the transport, message by message: what a real client never does is seen here alone."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from adb_device.connection import Connection, Service, Stream
from adb_device.link import Link
from adb_device.protocol import MAX_DATA, VERSION, VERSION_WITH_CHECKSUM, Command, Message, header, read_message

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
BANNER = b"device::features=shell_v2"


class Peer:
    """The other end of a connection: sends and reads whole messages, and waits for none longer than two seconds."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(2)
        self._socket = connected

    def send(self, command: Command, arg0: int, arg1: int, data: bytes = b"") -> None:
        self._socket.sendall(header(Message(command, arg0, arg1, data), version=VERSION) + data)

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> Message:
        return read_message(self._exactly)

    def read_bytes(self, size: int) -> bytes:
        return bytes(self._exactly(size))

    def silent(self) -> bool:
        """Nothing comes for a tenth of a second."""
        self._socket.settimeout(0.1)
        try:
            return not self._socket.recv(1)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(2)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            received = self._socket.recv(size - len(data))
            if not received:
                raise EOFError
            data += received
        return data


@contextmanager
def connected(service: Service, **options: object) -> Iterator[Peer]:
    """A peer of a connection that offers one service, called "service:"."""
    ours, theirs = socket.socketpair()
    offered: Callable[[str], Service | None] = {"service:": service}.get
    connection = Connection(Link(ours), BANNER, offered, **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=connection.run)
    thread.start()
    with theirs:
        yield Peer(theirs)
        theirs.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
    assert not thread.is_alive()


@contextmanager
def opened(service: Service) -> Iterator[tuple[Peer, int]]:
    """A peer with the service open as its stream 7, and the daemon's number of that stream."""
    with connected(service) as peer:
        peer.send(Command.CNXN, VERSION, MAX_DATA)
        assert peer.read() == (Command.CNXN, VERSION, MAX_DATA, BANNER)
        peer.send(Command.OPEN, 7, 0, b"service:\0")
        command, ours, theirs, _ = peer.read()
        assert (command, theirs) == (Command.OKAY, 7)
        yield peer, ours


def test_only_one_message_is_under_way_until_it_is_acknowledged() -> None:
    with opened(lambda stream: stream.write(bytes(MAX_DATA + 5))) as (peer, ours):
        assert len(peer.read().data) == MAX_DATA
        assert peer.silent()
        peer.send(Command.OKAY, 7, ours)
        assert peer.read() == (Command.WRTE, ours, 7, bytes(5))


def test_more_is_asked_for_only_when_the_service_took_what_came() -> None:
    takes = threading.Event()

    def service(stream: Stream) -> None:
        takes.wait(5)
        stream.write(stream.read(6))

    with opened(service) as (peer, ours):
        peer.send(Command.WRTE, 7, ours, b"abc")
        assert peer.silent()
        takes.set()
        assert peer.read() == (Command.OKAY, ours, 7, b"")
        peer.send(Command.WRTE, 7, ours, b"defghi")
        assert peer.read() == (Command.WRTE, ours, 7, b"abcdef")


def test_a_service_that_ends_closes_its_stream() -> None:
    with opened(lambda stream: None) as (peer, ours):
        assert peer.read() == (Command.CLSE, ours, 7, b"")


def test_a_stream_that_the_peer_closes_ends_its_service() -> None:
    ended = threading.Event()

    def service(stream: Stream) -> None:
        with pytest.raises(EOFError):
            stream.read(1)
        ended.set()

    with opened(service) as (peer, ours):
        peer.send(Command.CLSE, 7, ours)
        assert ended.wait(2)


def test_a_service_that_is_not_there_is_refused() -> None:
    with opened(lambda stream: stream.wait_closed()) as (peer, _):
        peer.send(Command.OPEN, 8, 0, b"other:\0")
        assert peer.read() == (Command.CLSE, 0, 8, b"")


@pytest.mark.parametrize(("version", "checksum"), [(VERSION_WITH_CHECKSUM, sum(BANNER)), (VERSION, 0)])
def test_only_old_peers_get_a_checksum(version: int, checksum: int) -> None:
    with connected(lambda stream: None) as peer:
        peer.send(Command.CNXN, version, 4096)
        sent = struct.unpack("<6I", peer.read_bytes(24))
        assert sent[3:] == (len(BANNER), checksum, Command.CNXN ^ 0xFFFFFFFF)


def test_a_key_is_asked_for_until_it_is_allowed() -> None:
    with connected(lambda stream: None, asks_key=True, allowed_after=0.0) as peer:
        peer.send(Command.CNXN, VERSION, MAX_DATA)
        tokens = [peer.read()]
        peer.send(Command.OPEN, 7, 0, b"service:\0")  # too early: no answer
        peer.send(Command.AUTH, 2, 0, b"signature")
        tokens.append(peer.read())
        assert [(token.command, token.arg0, len(token.data)) for token in tokens] == [(Command.AUTH, 1, 20)] * 2
        peer.send(Command.AUTH, 3, 0, b"public key")
        assert peer.read().command is Command.CNXN


@pytest.mark.parametrize("bytes_per_s", [None, 1_000_000])
def test_a_link_sends_whatever_length(bytes_per_s: int | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours, bytes_per_s)
        for length in (0, 1, 50_001):  # a message cut down to nothing is sent too
            link.send(b"", bytes(length))
        assert Peer(theirs).read_bytes(50_002) == bytes(50_002)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("<6I", Command.WRTE, 0, 0, 0, 0, 0),  # magic
        struct.pack("<6I", 0x12345678, 0, 0, 0, 0, 0x12345678 ^ 0xFFFFFFFF),  # command
        struct.pack("<6I", Command.WRTE, 0, 0, MAX_DATA + 1, 0, Command.WRTE ^ 0xFFFFFFFF),  # length
    ],
)
def test_what_is_no_message_ends_the_connection(sent: bytes) -> None:
    with connected(lambda stream: None) as peer:
        peer.send_bytes(sent)
        with pytest.raises(EOFError):
            peer.read()
