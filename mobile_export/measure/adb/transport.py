"""Talks to phones through the adb client: lists of arguments, closed stdin, limits of time and size, answers that are whole.

Old Androids lose exit codes, a cut connection loses the end, and a broken one may invent anything. So a command's output is
framed by lines with a number drawn for that call, and an answer without all its frames is an error.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import secrets
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobile_export.errors import MissingTool
from mobile_export.measure.adb.failures import CUT, failure

LONGEST = 4000  # bytes of a command: adb before Android 7 takes 4096
LARGEST = 1 << 25  # bytes of an answer: all logits of the largest vocabulary are a quarter of it
REMEMBERED = 1 << 16  # bytes of what adb draws
CONNECTIONS, PUSHES = 3, 2  # tried
BACK_S = 2  # after a broken connection
AGAIN = "run it again; if it stays so: adb kill-server"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey
NETWORK = re.compile(r".+:\d+")  # serial numbers of phones that adb reaches by themselves


class TimeIsUp(MissingTool):
    """A call of adb took too long and was ended."""


@dataclass(frozen=True)
class Answer:
    """What one command on the phone gave; stdout and stderr in one."""

    code: int
    text: str


@dataclass(frozen=True)
class Said:
    """What a call of adb gave."""

    code: int
    out: str
    err: str


class Adb:
    """The client and its running children. patience_s: for answers that should come at once, and between signs of life."""

    def __init__(self, client: Path, patience_s: float) -> None:
        self.client, self.patience_s = client, patience_s
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the server, which else would hold the pipes of the first call open.

        Raises:
            MissingTool: the client does not start, or its server does not.
        """
        said = self.call("start-server", timeout_s=self.patience_s, silent=True)
        if said.code:
            said = self.call("devices", timeout_s=self.patience_s)
            raise failure(str(self.client), "starting its server", said.err or said.out)

    def devices(self, *, cleaning: bool = False) -> dict[str, str]:
        """Serial number -> state, "device" for one that can be used."""
        lines = self.call("devices", timeout_s=self.patience_s, cleaning=cleaning).out.splitlines()
        pairs = [line.split("\t", 1) for line in lines if "\t" in line and not line.startswith("*")]
        return {serial: state.strip() for serial, state in pairs}

    def connect(self, serial: str, *, cleaning: bool = False) -> str:
        """Reach for a phone on the network; its state afterwards. What adb says and returns is not to be trusted."""
        for attempt in range(CONNECTIONS):
            if attempt:
                self.call("disconnect", serial, timeout_s=self.patience_s, cleaning=cleaning)
                time.sleep(0.2 * attempt)
            self.call("connect", serial, timeout_s=self.patience_s, cleaning=cleaning)
            state = self.devices(cleaning=cleaning).get(serial, "not found")
            if state in ("device", "unauthorized"):
                break
        return state

    def stop(self) -> None:
        """End what runs, and let nothing new begin but cleaning up."""
        self._stopped.set()
        for child in list(self._children):
            _end(child)

    def rest(self, seconds: float) -> None:
        """Wait. Raises KeyboardInterrupt where stopped."""
        if self._stopped.wait(seconds):
            raise KeyboardInterrupt

    def call(
        self,
        *arguments: str,
        timeout_s: float,
        silent: bool = False,
        cleaning: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> Said:
        """Run the client once.

        Args:
            timeout_s: of the whole call; with progress, between two signs of life.
            silent: the output is not wanted. progress: shown what adb draws on a terminal, while it does.
        Raises:
            TimeIsUp: it took longer. MissingTool: it does not start, or says more than LARGEST. KeyboardInterrupt: stopped.
        """
        if self._stopped.is_set() and not cleaning:
            raise KeyboardInterrupt
        terminal, theirs = pty.openpty() if progress else (-1, -1)
        sink = theirs if progress else subprocess.DEVNULL if silent else subprocess.PIPE
        try:
            child = subprocess.Popen(
                [str(self.client), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, "TERM": "xterm"} if progress else None,  # on a dumb terminal adb draws nothing
                start_new_session=True,  # Ctrl-C is for us, who clean up the phone first
            )
        except OSError as error:
            raise MissingTool(str(self.client), f"does not start: {error.strerror}", "install another adb") from None
        finally:
            if progress:
                os.close(theirs)
        self._children.add(child)
        try:
            if self._stopped.is_set() and not cleaning:  # meanwhile
                raise KeyboardInterrupt
            files = [terminal] if progress else [file.fileno() for file in (child.stdout, child.stderr) if file]
            try:
                texts = _read(files, child, timeout_s, str(self.client), progress)
            except TimeoutError:
                raise TimeIsUp(str(self.client), f"no answer within {timeout_s:g} s ({arguments[-1]:.40})", AGAIN) from None
            out, err = (*texts, "", "")[:2]
            return Said(child.returncode, out, err)
        finally:
            _end(child)
            self._children.discard(child)
            for file in (child.stdout, child.stderr):
                if file:
                    file.close()
            if progress:
                os.close(terminal)


class Device:
    """One phone behind adb. name: what errors call it."""

    def __init__(self, adb: Adb, serial: str) -> None:
        self.adb, self.serial, self.name = adb, serial, serial

    def ask(
        self, doing: str, commands: Mapping[str, str], *, timeout_s: float, then: str = AGAIN, cleaning: bool = False
    ) -> dict[str, Answer]:
        """Run shell commands one after the other, whether they fail or not; all in one call, because a call costs 50 ms.

        Args:
            doing: what for, in errors. commands: name -> command; what is put into one must be quoted.
            then: what to do where the time is up.
        Returns:
            name -> its answer.
        Raises:
            MissingTool: the connection broke, or the phone answered something else, or nothing within timeout_s.
        """
        mark = f"@{secrets.token_hex(6)}"
        script = f't(){{ echo;echo "{mark} $1 $2"; }};t begin 0;'
        script += "".join(f"( {command} )2>&1;t {name} $?;" for name, command in commands.items())
        assert len(script) < LONGEST, len(script)
        try:
            said = self.adb.call("-s", self.serial, "shell", script, timeout_s=timeout_s, cleaning=cleaning)
        except TimeIsUp:
            raise TimeIsUp(self.name, f"did not finish within {timeout_s:g} s ({doing})", then) from None
        answers, begin = {}, 0
        text = CONTROL.sub("?", said.out.replace("\r\n", "\n"))  # a terminal lies between, before Android 7
        for found in re.finditer(rf"\n?{mark} (\w+) (\d+)\n", text):
            answers[found[1]] = Answer(int(found[2]), text[begin : found.start()])
            begin = found.end()
        if list(answers) != ["begin", *commands]:
            if text.strip() and "begin" not in answers and not said.err.strip():
                raise MissingTool(self.name, f"answered {text.strip()[:20]!a} ({doing})", AGAIN)
            raise failure(self.name, doing, CONTROL.sub("?", said.err.strip()) or "closed")
        return answers

    def push(self, files: Sequence[Path], folder: str, progress: Callable[[str], None]) -> None:
        """Push files into a folder that is there.

        Raises:
            MissingTool: it failed, at last after PUSHES times.
        """
        doing = f"pushing to {folder}"
        for attempt in range(PUSHES):
            if attempt:
                self.revive()
            try:
                said = self.adb.call(
                    *("-s", self.serial, "push", *map(str, files), f"{folder}/"),
                    timeout_s=self.adb.patience_s,
                    progress=lambda drawn: progress(_percent(drawn)),
                )
            except TimeIsUp:
                what = f"took nothing for {self.adb.patience_s:g} s ({doing})"
                error = MissingTool(self.name, what, "check the cable or the network, and run it again")
                continue
            if said.code == 0:
                return
            error = failure(self.name, doing, _complaints(said.out))
            if CUT not in error.what and "not connected" not in error.what:
                break
        raise error

    def pull(self, remote: str, local: Path) -> None:
        """Pull a file.

        Raises:
            MissingTool: it failed, or took too long.
        """
        said = self.adb.call("-s", self.serial, "pull", remote, str(local), timeout_s=10 * self.adb.patience_s)
        if said.code or not local.is_file():
            raise failure(self.name, f"pulling {remote}", _complaints(said.err + said.out))

    def revive(self, *, cleaning: bool = False) -> str:
        """Reach for a phone whose connection broke; its state."""
        if NETWORK.fullmatch(self.serial):
            return self.adb.connect(self.serial, cleaning=cleaning)
        until = time.monotonic() + BACK_S  # USB comes back by itself
        while True:
            state = self.adb.devices(cleaning=cleaning).get(self.serial, "not found")
            if state == "device" or time.monotonic() > until:
                return state
            time.sleep(0.1)


def _read(
    files: Sequence[int],
    child: subprocess.Popen[bytes],
    timeout_s: float,
    client: str,
    progress: Callable[[str], None] | None,
) -> list[str]:
    """What a child writes to each file until it ends.

    Raises:
        TimeoutError: it took longer.
    """
    texts = {file: bytearray() for file in files}
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for key, _ in selector.select(min(left, 1)):
                drawn = _some(key.fd)
                if not drawn:
                    selector.unregister(key.fd)
                texts[key.fd] += drawn
                if progress:
                    del texts[key.fd][:-REMEMBERED]
                    deadline = time.monotonic() + timeout_s
                    progress(drawn.decode(errors="replace"))
                if len(texts[key.fd]) > LARGEST:
                    raise MissingTool(client, f"the answer is longer than {LARGEST >> 20} MiB", AGAIN)
    try:
        child.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return [text.decode(errors="replace") for text in texts.values()]


def _some(file: int) -> bytes:
    try:
        return os.read(file, 1 << 16)
    except OSError:  # the other end of a terminal was closed
        return b""


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _percent(drawn: str) -> str:
    """The last share in what adb draws.

    >>> _percent("[  9%] /data/x: 18%")
    '9 %'
    """
    found = re.findall(r"\[ *(\d+)%\]", drawn)
    return f"{found[-1]} %" if found else ""


def _complaints(said: str) -> str:
    """Of what adb drew, which overwrites itself on a terminal, the lines that complain."""
    lines = [CONTROL.sub("?", line.strip()) for line in re.split(r"[\r\n]+|\x1b\[K", said) if line.strip()]
    return "\n".join([line for line in lines if "error" in line or "failed" in line] or lines[-2:])
