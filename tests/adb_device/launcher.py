"""Run a command line in a phone's root as Android's shell would: `sh -c`, user 2000, arm64 programs through qemu.

proot needs no privileges: it rewrites paths. Capabilities are dropped first, so that file modes bind even when the tests
run as root. It is no sandbox: the host's network and processes are there, and its files under /host-rootfs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from adb_device.root import Root

MARKER = "ADB_DEVICE"  # in the environment of all that runs on one phone; tools/processes looks for it
# qemu's default CPU has SME, and XNNPACK's int8 kernels for it give wrong numbers under qemu 7.2.
EMULATOR = ("qemu-aarch64-static", "-cpu", "cortex-a76")
PATH = "/product/bin:/apex/com.android.runtime/bin:/system/bin:/system/xbin:/odm/bin:/vendor/bin"


class Launcher:
    """Starts, lists and ends the processes of one phone."""

    def __init__(self, root: Root, *, arm64: bool = True, killed: str | None = None) -> None:
        self._root = root
        self._arm64 = arm64
        self._marker = uuid.uuid4().hex
        self._started: list[subprocess.Popen[bytes]] = []
        self.closing = threading.Event()
        if killed is not None:
            threading.Thread(target=self._kill_all_with, args=(killed,), daemon=True).start()

    def start(self, command: str, *, stderr_apart: bool) -> subprocess.Popen[bytes]:
        """Start `sh -c command` with pipes for its input and output, and one for its errors or the same."""
        self._root.count_command()
        process = subprocess.Popen(
            [_found("env"), "--default-signal=HUP", *self._arguments(command)],  # ignored under nohup, and that is inherited
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if stderr_apart else subprocess.STDOUT,
            env=self._environment(),
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def start_outside(self, name: str, command: Sequence[str]) -> int:
        """Start a program of the host, which on the phone has this name; the number of its group."""
        process = subprocess.Popen(
            [*_without_privileges(), _found("bash"), "-c", 'exec -a "$0" "$@"', name, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, MARKER: self._marker},
            start_new_session=True,
        )
        self._started.append(process)
        threading.Thread(target=process.wait, daemon=True).start()  # or the phone goes on seeing it
        while process.poll() is None and not self._marked().get(process.pid, "").startswith(f"{name} "):
            time.sleep(0.01)  # until it has its name, which the phone looks for
        return process.pid

    def hang_up(self, process: subprocess.Popen[bytes]) -> None:
        """Tell the shell, and only the shell, that its client has left."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            shell = int(children.read_text().split()[0])  # proot's first child
            os.kill(shell, signal.SIGHUP)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass  # it has ended

    def processes(self) -> dict[int, str]:
        """What runs on the phone: host's process id -> arguments."""
        ours = tuple(f"{_found(tool)} " for tool in ("proot", "setpriv"))
        return {pid: arguments for pid, arguments in self._marked().items() if not arguments.startswith(ours)}

    def close(self) -> None:
        """Kill all that runs on the phone."""
        self.closing.set()
        while marked := self._marked():
            for pid in marked:
                _kill(pid)
            time.sleep(0.01)
        for process in self._started:
            process.wait()

    def _arguments(self, command: str) -> list[str]:
        arguments = [
            *_without_privileges(),
            _found("proot"),
            "-v",
            "-1",
            "-r",
            str(self._root.folder),
            "-w",
            "/",
            "-i",
            "2000:2000",
        ]
        for source, target in self._root.binds():
            arguments += ["-b", f"{source}:{target}"]
        if not self._arm64:
            # An emulator that is no ELF file gives ENOEXEC, as the kernel of such a phone does.
            arguments += ["-q", str(self._root.folder / "system/bin/getprop")]
        elif platform.machine() != "aarch64":
            arguments += ["-q", " ".join([_found(EMULATOR[0]), *EMULATOR[1:]])]
        return [*arguments, "/system/bin/sh", "-c", command]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": PATH,
            "HOME": "/",
            "TMPDIR": "/data/local/tmp",
            "ANDROID_DATA": "/data",
            "ANDROID_ROOT": "/system",
            "SHELL": "/system/bin/sh",
            "USER": "shell",
            "LOGNAME": "shell",
            "TERM": "dumb",
            MARKER: self._marker,
            "PROOT_TMP_DIR": str(self._root.folder.parent),
        }

    def _marked(self) -> dict[int, str]:
        found = {}
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    if f"{MARKER}={self._marker}".encode() in (process / "environ").read_bytes().split(b"\0"):
                        arguments = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                        found[int(process.name)] = b" ".join(arguments).decode(errors="replace")
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue  # it has ended, or is somebody else's
        return found

    def _kill_all_with(self, text: str) -> None:
        """As lmkd does to what takes too much memory; the shell that started it lives."""
        while not self.closing.wait(0.02):
            for pid, arguments in self.processes().items():
                if text in arguments and not arguments.startswith("/system/bin/sh -c "):
                    _kill(pid)


def _without_privileges() -> list[str]:
    """What a command of the phone is started through: with them, the others there could not look at it."""
    return [_found("setpriv"), "--bounding-set=-all", "--inh-caps=-all", "--"] if os.geteuid() == 0 else []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(pid, signal.SIGKILL)


def _found(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise FileNotFoundError(f"{tool}: not found; install it, see adb_device/needs.py")
    return path
