"""The device daemon: listens on a loopback port and gives each service name its service."""

from __future__ import annotations

import socket
import threading
from functools import partial

from adb_device import forward
from adb_device.connection import Connection, Service, Stream
from adb_device.faults import Faults, Strikes
from adb_device.fixture import Fixture
from adb_device.fuzz import Mangler
from adb_device.launcher import Launcher
from adb_device.link import Link
from adb_device.root import Root
from adb_device.shell import Shell
from adb_device.sync import Sync


class Daemon:
    """Serves one phone from the moment it is made until `close`."""

    def __init__(self, root: Root, fixture: Fixture, faults: Faults) -> None:
        self.root = root
        self.launcher = Launcher(root, arm64=not faults.wrong_abi, killed=faults.killed)
        self.requests: list[str] = []  # every service asked for, in order
        self._fixture = fixture
        self._faults = faults
        strikes = Strikes(faults.times)
        self._shell = Shell(self.launcher, crlf=fixture.crlf, faults=faults, strikes=strikes)
        self._sync = Sync(root, faults=faults, strikes=strikes)
        self.mangler = None if faults.fuzz is None else Mangler(faults.fuzz)
        self._links: list[Link] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def connections(self) -> int:
        """How often a server has connected."""
        return len(self._links)

    def close(self) -> None:
        """Stop listening, break every connection, kill what runs."""
        self._listening.shutdown(socket.SHUT_RDWR)  # a bare close would leave the thread in accept()
        self._listening.close()
        for link in self._links:
            link.cut()
        self.launcher.close()

    def _listen(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return  # closed
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(connected, self._faults.slow_link)
            self._links.append(link)
            if self._faults.offline and len(self._links) > 1:
                continue  # nobody answers
            connection = Connection(
                link,
                self._banner(),
                self._service,
                asks_key=self._faults.unauthorized or self._faults.allowed_after is not None,
                allowed_after=self._faults.allowed_after,
                mangler=self.mangler,
            )
            threading.Thread(target=connection.run, daemon=True).start()
            if self._faults.offline:
                threading.Timer(0.3, link.cut).start()

    def _banner(self) -> bytes:
        names = ("ro.product.name", "ro.product.model", "ro.product.device")
        told = "".join(f"{name}={self._fixture.properties[name]};" for name in names)
        features = [name for name in self._fixture.features if name != "shell_v2" or not self._faults.no_shell_v2]
        return f"device::{told}features={','.join(features)}".encode()

    def _service(self, name: str) -> Service | None:
        self.requests.append(name)
        kind = name.partition(":")[0].partition(",")[0]
        if kind in ("shell", "exec"):
            return partial(self._shell.serve, name)
        if kind == "sync":
            return self._sync.serve
        if kind in ("tcp", "localabstract"):
            connected = forward.connect(name)
            return None if connected is None else partial(forward.serve, connected)
        if kind == "root":
            return partial(Stream.write, data=b"adbd cannot run as root in production builds\n")
        return None
