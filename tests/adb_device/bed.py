"""A test's own adb server, and phones on it.

    with Bed(tmp_path) as bed:
        phone = bed.phone("pixel8", faults=Faults(disk_full_after=1 << 20))
        bed.adb("-s", phone.serial, "push", "model.pte", "/data/local/tmp/")

What it needs is in Debian, see needs.py; tests that use it are marked with `needs_bed`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from adb_device.app import App, Command
from adb_device.daemon import Daemon
from adb_device.faults import Faults
from adb_device.fixture import read_fixture
from adb_device.root import Root


class Phone:
    """One phone, already connected unless its faults forbid it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.serial = f"127.0.0.1:{daemon.port}"

    @property
    def data(self) -> Path:
        """The host's path of the phone's /data/local/tmp."""
        return self._daemon.root.data

    @property
    def root(self) -> Path:
        """The host's path of its /."""
        return self._daemon.root.folder

    @property
    def requests(self) -> list[str]:
        """The services asked for so far, such as "shell,v2,raw:getprop" and "sync:"."""
        return list(self._daemon.requests)

    @property
    def connections(self) -> int:
        """How often the server has connected to it."""
        return self._daemon.connections

    @property
    def mangled(self) -> int:
        """How many of its answers were not what they should be."""
        mangler = self._daemon.mangler
        return 0 if mangler is None else mangler.mangled

    def change(self, path: str, old: str, new: str) -> None:
        """Replace text in one of its files, such as /system/etc/dumpsys/thermalservice.txt, as if the phone had changed."""
        self._daemon.root.change(path, old, new)

    def install(self, package: str, command: Command) -> App:
        """Have an app on it: its command, to which the extras of an intent are added."""
        return App(self._daemon.root, self._daemon.launcher, package, command)

    def processes(self) -> dict[int, str]:
        """What runs on it now: process id -> arguments."""
        return self._daemon.launcher.processes()

    def state(self, name: str) -> str | None:
        """The last value given to `fixed_performance`, `stayon` or `taskset`; None if never."""
        return self._daemon.root.state(name)


class Bed:
    """An adb server on a port of its own, with its keys in `folder`; killed at the end, with all its phones.

    Args:
        folder: an empty folder of the test.
        adb: the adb binary whose server runs, and which `adb` calls.
    """

    def __init__(self, folder: Path, adb: str | Path = "adb") -> None:
        self._folder = folder / "adb-bed"
        self.client = str(adb)
        self._daemons: list[Daemon] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.environment = {
            "ANDROID_ADB_SERVER_PORT": str(port),
            "HOME": str(self._folder / "home"),  # adb keeps its key there
            "ADB_LOCAL_TRANSPORT_MAX_PORT": "5554",  # look for no emulators on this machine
            "ADB_MDNS": "0",
            "ADB_LIBUSB": "0",  # where there is no USB, adb 36 waits three seconds for libusb
        }

    def __enter__(self) -> Bed:
        (self._folder / "home").mkdir(parents=True)
        with (self._folder / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                [self.client, "nodaemon", "server"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
            )
        self._wait_for_server()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for daemon in self._daemons:
                daemon.close()
                daemon.root.make_removable()
        finally:
            self._server.kill()
            self._server.wait()

    def phone(self, fixture: str = "pixel8", faults: Faults | None = None, *, connect: bool = True) -> Phone:
        """A new phone of fixtures/`fixture`, connected to the server.

        Raises:
            RuntimeError: adb did not connect, and no fault of the phone explains it.
        """
        faults = faults or Faults()
        described = read_fixture(fixture)
        root = Root(self._folder / f"phone{len(self._daemons)}", described, faults)
        self._daemons.append(daemon := Daemon(root, described, faults))
        phone = Phone(daemon)
        if connect:
            said = self.adb("connect", phone.serial).stdout
            if not said.startswith("connected") and not (faults.unauthorized or faults.allowed_after):
                raise RuntimeError(f"{said.strip()}; {self._log()}")
        return phone

    def adb(self, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run the adb client. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            [self.client, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | self.environment,
            timeout=timeout,
            check=False,
        )

    def _wait_for_server(self) -> None:
        port = int(self.environment["ANDROID_ADB_SERVER_PORT"])
        until = time.monotonic() + 20
        while time.monotonic() < until and self._server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.01)
        self._server.kill()
        raise RuntimeError(f"the adb server does not listen on port {port}; {self._log()}")

    def _log(self) -> str:
        return f"its log: {(self._folder / 'server.log').read_text(errors='replace')[-2000:]}"
