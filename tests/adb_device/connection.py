"""One connection of the adb server: handshake, then streams that share the link.

Flow control is adb's: on each stream, in each direction, one WRTE may be under way; OKAY asks for the next. Ours goes
out when a service takes the data, so that a service that hangs also stops the sender.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from adb_device.fuzz import Mangler
from adb_device.link import Link
from adb_device.protocol import (
    AUTH_PUBLIC_KEY,
    AUTH_TOKEN,
    MAX_DATA,
    VERSION,
    VERSION_WITH_CHECKSUM,
    Command,
    Message,
    ProtocolError,
    header,
    read_message,
)

Service = Callable[["Stream"], None]


class Stream:
    """One open service, seen from the service. The connection's thread puts data in, the service's thread takes it out."""

    def __init__(self, connection: Connection, ours: int, theirs: int) -> None:
        self.connection = connection
        self.ours, self.theirs = ours, theirs
        self._changed = threading.Condition()
        self._data = bytearray()
        self._unacknowledged = False  # data came in, and no OKAY has asked for more
        self._may_write = True
        self._closed = False  # by the other side

    @property
    def closed(self) -> bool:
        return self._closed

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; EOFError when the stream ends before."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._data) >= size or self._unacknowledged or self._closed)
                if len(self._data) >= size:
                    taken = bytes(memoryview(self._data)[:size])
                    del self._data[:size]
                    return taken
                if not self._unacknowledged:
                    raise EOFError
                self._unacknowledged = False
            self.connection.send(Message(Command.OKAY, self.ours, self.theirs))

    def read_available(self) -> bytes:
        """What is there, waiting for at least one byte; empty when the stream has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._data or self._closed)
            taken = bytes(self._data)
            self._data.clear()
            asks = self._unacknowledged
            self._unacknowledged = False
        if asks:
            self.connection.send(Message(Command.OKAY, self.ours, self.theirs))
        return taken

    def write(self, data: bytes) -> None:
        """Send all of it, waiting for the reader between messages; EOFError when the stream ends before."""
        for piece in self.connection.pieces(data):
            left = memoryview(piece)
            while left:
                self._wait_for_okay()
                self.connection.send(Message(Command.WRTE, self.ours, self.theirs, left[: self.connection.max_data]))
                left = left[self.connection.max_data :]

    def _wait_for_okay(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._may_write or self._closed)
            if self._closed:
                raise EOFError
            self._may_write = False

    def wait_closed(self) -> None:
        """Wait until the other side closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed)

    # Called by the connection's thread.

    def put(self, data: bytes | bytearray | memoryview) -> None:
        with self._changed:
            self._data += data
            self._unacknowledged = True
            self._changed.notify_all()

    def okay(self) -> None:
        with self._changed:
            self._may_write = True
            self._changed.notify_all()

    def closed_by_peer(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Connection:
    """Speaks the transport on one link until it ends.

    Args:
        banner: what CNXN says of the phone: "device::name=value;...;features=a,b".
        service: the service behind a name such as "shell:ls", or None if there is none.
        asks_key: an unknown key is asked for, as all keys are unknown; else everybody may connect.
        allowed_after: seconds until somebody taps "Allow"; None: never.
        mangler: of what is sent once the phone is online; None: nothing is harmed.
    """

    def __init__(
        self,
        link: Link,
        banner: bytes,
        service: Callable[[str], Service | None],
        *,
        asks_key: bool = False,
        allowed_after: float | None = None,
        mangler: Mangler | None = None,
    ) -> None:
        self.link = link
        self.max_data = 4096  # bytes, until CNXN says otherwise
        self._version = VERSION_WITH_CHECKSUM
        self._banner = banner
        self._service = service
        self._asks_key = asks_key
        self._allowed_after = allowed_after
        self._mangler = mangler
        self._online = False
        self._streams: dict[int, Stream] = {}
        self._next = 1

    def send(self, message: Message) -> None:
        if self._mangler is None or not self._online:
            self.link.send(header(message, version=self._version), message.data)
            return
        for piece in self._mangler.mangle("messages", header(message, version=self._version) + message.data):
            self.link.send(piece)

    def pieces(self, data: bytes) -> list[bytes]:
        """What a stream sends in place of `data`: itself, unless it is to be mangled."""
        return [data] if self._mangler is None else self._mangler.mangle("payloads", data)

    def run(self) -> None:
        """Answer messages until the link ends, then end every stream."""
        try:
            while True:
                self._answer(read_message(self.link.receive))
        except (EOFError, ProtocolError):
            pass  # adbd drops the connection too
        finally:
            for stream in list(self._streams.values()):
                stream.closed_by_peer()
            self.link.close()

    def _answer(self, message: Message) -> None:
        command, arg0, arg1, data = message
        if command is Command.CNXN:
            self._version, self.max_data = min(arg0, VERSION), min(arg1, MAX_DATA)
            self._ask_for_key() if self._asks_key else self._welcome()
        elif command is Command.AUTH and arg0 == AUTH_PUBLIC_KEY:
            if self._allowed_after is not None:
                threading.Timer(self._allowed_after, self._welcome).start()
        elif command is Command.AUTH:
            self._ask_for_key()  # no signature is by a key we know
        elif not self._online:
            return
        elif command is Command.OPEN:
            self._open(arg0, bytes(data).rstrip(b"\0").decode(errors="replace"))
        elif command is Command.OKAY and arg1 in self._streams:
            self._streams[arg1].okay()
        elif command is Command.WRTE and arg1 in self._streams:
            self._streams[arg1].put(data)
        elif command is Command.CLSE and arg1 in self._streams:
            self._streams.pop(arg1).closed_by_peer()

    def _welcome(self) -> None:
        with contextlib.suppress(EOFError):  # the peer did not wait
            self.send(Message(Command.CNXN, VERSION, MAX_DATA, self._banner))
            self._online = True

    def _ask_for_key(self) -> None:
        self.send(Message(Command.AUTH, AUTH_TOKEN, 0, os.urandom(20)))

    def _open(self, theirs: int, name: str) -> None:
        service = self._service(name)
        if service is None:
            self.send(Message(Command.CLSE, 0, theirs))
            return
        stream = Stream(self, self._next, theirs)
        self._next += 1
        self._streams[stream.ours] = stream
        self.send(Message(Command.OKAY, stream.ours, theirs))
        threading.Thread(target=self._serve, args=(service, stream), daemon=True).start()

    def _serve(self, service: Service, stream: Stream) -> None:
        try:
            service(stream)
        except (EOFError, ProtocolError):
            pass  # the other side went first, or out of step
        finally:
            self._streams.pop(stream.ours, None)
            with contextlib.suppress(EOFError):
                self.send(Message(Command.CLSE, stream.ours, stream.theirs))
