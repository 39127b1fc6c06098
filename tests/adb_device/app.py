"""An app on a phone: what its intents start is a program of the host, which the phone sees as a process of the package's name.

tools/am lays an intent into a file; here it is taken up. Paths in extras are made the host's. As any app, it is another user
than `shell`: a file of the phone that not everybody may read is given to it as one that is not there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from adb_device.launcher import Launcher
from adb_device.root import Root

LOOKED_S = 0.02
Command = Callable[[Path], Sequence[str]]  # of the folder that is the app's own on the phone


class App:
    """An installed package, until the phone is closed."""

    def __init__(self, root: Root, launcher: Launcher, package: str, command: Command) -> None:
        self._root, self._launcher, self._package = root, launcher, package
        self._intents = root.folder / "data/misc/states/apps" / package
        self._intents.mkdir(parents=True)
        self.files = root.folder / "sdcard/Android/data" / package / "files"
        self.files.mkdir(parents=True)
        self.started: list[list[str]] = []  # the extras of every intent
        self._command = list(command(self.files))  # made now: what it has to fetch or compile must not fail in a thread
        self._groups: list[int] = []
        threading.Thread(target=self._take_up, daemon=True).start()

    def _take_up(self) -> None:
        while not self._launcher.closing.wait(LOOKED_S):
            for path in self._intents.glob("*.stop"):
                while self._groups:
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        os.killpg(self._groups.pop(), signal.SIGKILL)  # the app, and what it started
                path.unlink(missing_ok=True)
            for path in self._intents.glob("*.start"):
                extras = path.read_text().splitlines()
                self.started.append(extras)
                arguments = [*self._command, *map(self._of_host, extras)]
                self._groups.append(self._launcher.start_outside(self._package, arguments))
                path.unlink(missing_ok=True)

    def _of_host(self, value: str) -> str:
        if not value.startswith("/"):
            return value
        path = self._root.folder / value[1:]
        above = [each for each in path.parents if each.is_relative_to(self._root.folder / "data/local/tmp")]
        passable = all(each.is_dir() and each.stat().st_mode & stat.S_IXOTH for each in above)
        readable = passable and path.is_file() and path.stat().st_mode & stat.S_IROTH
        return str(path) if readable else value
