"""The services `shell:` and `exec:`: a command line, its output, its exit code.

Three forms: `shell,v2,raw:COMMAND` frames every piece as (id, length, bytes) and ends with the exit code; `shell:COMMAND`
and `exec:COMMAND` send output and errors as one run of bytes and no exit code. Before Android 7 `shell:` ran in a
terminal, so that lines end in CR LF there.
Source: AOSP packages/modules/adb, shell_protocol.h, daemon/shell_service.cpp.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import struct
import threading
from subprocess import Popen

from adb_device.connection import Stream
from adb_device.faults import Faults, Strikes
from adb_device.launcher import Launcher

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
PIECE = 1 << 16  # bytes read at a time


class Shell:
    """Runs the commands of one phone."""

    def __init__(self, launcher: Launcher, *, crlf: bool, faults: Faults, strikes: Strikes) -> None:
        self._launcher = launcher
        self._crlf = crlf
        self._faults = faults
        self._strikes = strikes

    def serve(self, service: str, stream: Stream) -> None:
        """Run the command named by `service`, for example "shell,v2,raw:ls /"."""
        kind, _, command = service.partition(":")
        if self._strikes_at(self._faults.hang_shell, command):
            stream.wait_closed()
            return
        if self._strikes_at(self._faults.cut_shell, command):
            threading.Timer(0.5, stream.connection.link.cut).start()
        v2 = "v2" in kind.split(",")
        process = self._launcher.start(command or "sh", stderr_apart=v2)
        session = _V2(stream) if v2 else _V1(stream, crlf=self._crlf and kind == "shell")
        threading.Thread(target=session.feed_stdin, args=(process,), daemon=True).start()
        rubbish = None
        if self._strikes_at(self._faults.rubbish_shell, command):
            rubbish = random.Random(self._faults.seed)
        try:
            _pass_output(process, stream, session, rubbish)
            session.exit(_exit_code(process.wait()))
        except EOFError:
            # As adbd does: only the shell is told. What it started goes on, unless it notices the closed pipe.
            self._launcher.hang_up(process)
            raise
        finally:
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def _strikes_at(self, text: str | None, command: str) -> bool:
        return text is not None and text in command and self._strikes.strike()


class _V2:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def feed_stdin(self, process: Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            while True:
                kind, size = struct.unpack("<BI", self._stream.read(5))
                data = self._stream.read(size)
                if kind == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    process.stdin.close()
        except (EOFError, OSError, ValueError):
            pass  # the client left, or the command ended or closed its input
        finally:
            _close_quietly(process)

    def output(self, kind: int, data: bytes) -> None:
        self._stream.write(struct.pack("<BI", kind, len(data)) + data)

    def exit(self, code: int) -> None:
        self._stream.write(struct.pack("<BIB", EXIT, 1, code))


class _V1:
    def __init__(self, stream: Stream, *, crlf: bool) -> None:
        self._stream = stream
        self._crlf = crlf

    def feed_stdin(self, process: Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            while data := self._stream.read_available():
                process.stdin.write(data)
                process.stdin.flush()
        except OSError:
            pass  # the command ended or closed its input
        finally:
            _close_quietly(process)

    def output(self, kind: int, data: bytes) -> None:
        self._stream.write(data.replace(b"\n", b"\r\n") if self._crlf else data)

    def exit(self, code: int) -> None:
        pass  # this form of the protocol has no place for it


def _pass_output(process: Popen[bytes], stream: Stream, session: _V1 | _V2, rubbish: random.Random | None) -> None:
    """Send what the command prints until both of its pipes end; EOFError when the client leaves before."""
    with selectors.DefaultSelector() as selector:
        for kind, pipe in ((STDOUT, process.stdout), (STDERR, process.stderr)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, kind)
        while selector.get_map():
            for key, _ in selector.select(timeout=0.05):
                data = os.read(key.fd, PIECE)
                if not data:
                    selector.unregister(key.fileobj)
                elif rubbish is not None:
                    session.output(key.data, rubbish.randbytes(rubbish.randrange(1, 3 * len(data))))
                else:
                    session.output(key.data, data)
            if stream.closed:
                raise EOFError


def _exit_code(returncode: int) -> int:
    """As adbd gives it: 128 + the signal's number for a shell that a signal ended."""
    return returncode & 0xFF if returncode >= 0 else 0x80 | -returncode


def _close_quietly(process: Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # unflushed input of a command that ended
        process.stdin.close()
