"""The phone's file system: a folder with Android's shell and tools, the fixture's /proc and /sys, and /data/local/tmp.

All is owned by the user who runs the tests, who is `shell` on the phone; what Android forbids to `shell` is forbidden by
the modes of files and folders. Both the processes of the phone and the `sync:` service go by them.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from functools import cache
from io import BufferedReader, BufferedWriter
from pathlib import Path, PurePosixPath

from adb_device.faults import Faults
from adb_device.fixture import Fixture

TOOLS = Path(__file__).parent / "tools"
FROM_BUSYBOX = frozenset({"dd", "diff", "expr", "tr"})  # in Android's toybox, not in Debian's
COMMANDS_BEFORE_CHANGES = 2
SHELL_MODES = {"data": 0o111, "data/local": 0o111, "data/misc": 0o111, "data/misc/states": 0o700, "sdcard": 0o771}
FOLDERS = ("dev", "proc", "sys", "system/bin", "system/etc/dumpsys", "etc", "sdcard", "data/local/tmp", "data/misc/states")
IMPLEMENTER = 0x41  # Arm Ltd.


class Root:
    """One phone's files, in `folder`. Paths of the phone are strings that begin with "/"."""

    def __init__(self, folder: Path, fixture: Fixture, faults: Faults) -> None:
        self.folder = folder
        self._fixture = fixture
        self._faults = faults
        self._commands = 0
        self._build()

    @property
    def data(self) -> Path:
        """The host's path of /data/local/tmp."""
        return self.folder / "data/local/tmp"

    def state(self, name: str) -> str | None:
        """What a tool remembers, for example "true" of `fixed_performance`; None if it was never set."""
        path = self.folder / "data/misc/states" / name
        return path.read_text().strip() if path.exists() else None

    def binds(self) -> list[tuple[str, str]]:
        """(host's path, phone's path) of what the phone takes from outside its folder."""
        devices = [(f"/dev/{name}", f"/dev/{name}") for name in ("null", "zero", "random", "urandom")]
        fakes = [(str(self.folder / "proc" / name), f"/proc/{name}") for name in ("meminfo", "cpuinfo")]
        return [*devices, ("/proc", "/proc"), *fakes, *((library, library) for library in _libraries())]

    def count_command(self) -> None:
        """Called before each command: after some, the phone changes."""
        self._commands += 1
        if self._commands != COMMANDS_BEFORE_CHANGES + 1:
            return
        if self._faults.clock_jump:
            self.change("/system/etc/clock_offset", "0", str(self._faults.clock_jump))
        if self._faults.heats_to is not None:
            self.change(
                "/system/etc/dumpsys/thermalservice.txt", "Thermal Status: 0", f"Thermal Status: {self._faults.heats_to}"
            )

    def change(self, path: str, old: str, new: str) -> None:
        """Replace text in a file that `shell` may not write; AssertionError where it is not there."""
        found = self._host_path(path)
        text, mode = found.read_text(), found.stat().st_mode
        assert old in text, f"{path}: no {old!r}"
        found.chmod(0o600)
        found.write_text(text.replace(old, new))
        found.chmod(mode)

    # What `sync:` does.

    def lstat(self, path: str) -> os.stat_result:
        return self._host_path(path, follow_last=False).lstat()

    def stat(self, path: str) -> os.stat_result:
        return self._host_path(path).stat()

    def names(self, path: str) -> list[str]:
        folder = self._host_path(path)
        _demand(folder, stat.S_IRUSR, errno.EACCES)
        return sorted(path.name for path in folder.iterdir())

    def open_to_read(self, path: str) -> BufferedReader:
        found = self._host_path(path)
        _demand(found, stat.S_IRUSR, errno.EACCES)
        return found.open("rb")

    def create(self, path: str) -> BufferedWriter:
        """A new file in place of an old one; missing folders above it are made."""
        target = PurePosixPath("/", path)
        writable = path.startswith("/data/")
        self._make_folders(target.parent, errno.EACCES if writable else errno.EROFS)
        found = self._host_path(str(target), follow_last=False)
        _demand(found.parent, stat.S_IWUSR, errno.EACCES if writable else errno.EROFS)
        if found.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        found.unlink(missing_ok=True)
        return found.open("wb")

    def _make_folders(self, folder: PurePosixPath, error: int) -> None:
        found = self._host_path(str(folder))
        if found.is_dir():
            return
        self._make_folders(folder.parent, error)
        _demand(found.parent, stat.S_IWUSR, error)
        found.mkdir()
        found.chmod(0o771)

    def _host_path(self, path: str, *, follow_last: bool = True) -> Path:
        """Where a phone's path is on the host: links and ".." stay inside the phone."""
        at, left, links = self.folder, list(reversed(PurePosixPath("/", path).parts[1:])), 0
        while left:
            name = left.pop()
            if name == "..":
                at = at.parent if at != self.folder else at
                continue
            if at.is_dir():
                _demand(at, stat.S_IXUSR, errno.EACCES)
            found = at / name
            if found.is_symlink() and (left or follow_last):
                links += 1
                if links > 40:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = PurePosixPath(found.readlink())
                at = self.folder if target.is_absolute() else at
                left += reversed([part for part in target.parts if part != "/"])
            else:
                at = found
        return at

    # How it is built.

    def _build(self) -> None:
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True)
        self._build_tools()
        self._build_settings()
        self._build_sys()
        shutil.copy(self._fixture.folder / "meminfo", self.folder / "proc/meminfo")
        for path in sorted((self._fixture.folder / "dumpsys").iterdir()):
            if path.stem not in self._faults.missing_services:
                shutil.copy(path, self.folder / "system/etc/dumpsys")
        self._set_modes()

    def _build_tools(self) -> None:
        binaries = self.folder / "system/bin"
        missing = {*self._fixture.missing_tools, *self._faults.missing_tools}
        shutil.copy(_tool("mksh"), binaries / "sh")
        shutil.copy(_tool("toybox"), binaries / "toybox")
        own = {path.name for path in TOOLS.iterdir()} - (set() if self._faults.clock_jump else {"date"})
        for name in own - missing:
            shutil.copy(TOOLS / name, binaries / name)
            (binaries / name).chmod(0o755)
        for name in {"pgrep", "pkill", "pidof", "killall", "ps"} - missing:
            (binaries / name).symlink_to("processes")
        shutil.copy(_tool("busybox"), self.folder / "system/etc/busybox")
        for name in FROM_BUSYBOX - missing:
            (binaries / name).symlink_to("../etc/busybox")
        for name in _toybox_commands() - missing:
            if not os.path.lexists(binaries / name):
                (binaries / name).symlink_to("toybox")

    def _build_settings(self) -> None:
        properties = dict(self._fixture.properties)
        machine = "aarch64"
        if self._faults.wrong_abi:
            machine = "armv8l"
            properties |= {"ro.product.cpu.abi": "armeabi-v7a", "ro.product.cpu.abilist": "armeabi-v7a,armeabi"}
        self._write("system/build.prop", "".join(f"{key}={value}\n" for key, value in properties.items()))
        free_kib = self._fixture.free_kib if self._faults.free_kib is None else self._faults.free_kib
        settings = {
            "page_size": self._fixture.page_size,
            "data_kib": self._fixture.data_kib,
            "free_kib": free_kib,
            "cores": len(self._fixture.cores),
            "machine": machine,
            "kernel": self._fixture.kernel,
            "fixed_performance": str(self._fixture.fixed_performance).lower(),
        }
        self._write("system/etc/phone.sh", "".join(f"{name}={value}\n" for name, value in settings.items()))
        self._write("system/etc/clock_offset", "0\n")
        self._write("etc/passwd", "root:x:0:0::/:/system/bin/sh\nshell:x:2000:2000::/:/system/bin/sh\n")
        self._write("etc/group", "root:x:0:\nshell:x:2000:\n")

    def _build_sys(self) -> None:
        cores = self._fixture.cores
        everyone = f"0-{len(cores) - 1}\n"
        for name in ("possible", "present", "online"):
            self._write(f"sys/devices/system/cpu/{name}", everyone)
        described = []
        for number, core in enumerate(cores):
            folder = f"sys/devices/system/cpu/cpu{number}"
            alike = " ".join(str(other) for other, twin in enumerate(cores) if twin == core)
            clocks = {
                "cpuinfo_min_freq": core.min_khz,
                "cpuinfo_max_freq": core.max_khz,
                "scaling_cur_freq": core.min_khz,
                "scaling_max_freq": core.max_khz,
                "scaling_governor": self._fixture.governor,
                "related_cpus": alike,
            }
            for name, value in clocks.items():
                self._write(f"{folder}/cpufreq/{name}", f"{value}\n")
            if core.capacity:
                self._write(f"{folder}/cpu_capacity", f"{core.capacity}\n")
            self._write(f"{folder}/topology/core_id", f"{number}\n")
            self._write(f"{folder}/topology/physical_package_id", "0\n")
            described.append(
                f"processor\t: {number}\nBogoMIPS\t: 49.15\n"
                "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc asimddp\n"
                f"CPU implementer\t: {IMPLEMENTER:#x}\nCPU architecture: 8\nCPU variant\t: 0x1\n"
                f"CPU part\t: {core.part:#05x}\nCPU revision\t: 0\n"
            )
        self._write("proc/cpuinfo", "\n".join(described))
        battery = {"current_now": self._fixture.battery_ua, "voltage_now": self._fixture.battery_uv}
        for name, value in battery.items():
            self._write(f"sys/class/power_supply/battery/{name}", f"{value}\n")
        for number, temperature in enumerate((31200, 29800)):
            self._write(f"sys/class/thermal/thermal_zone{number}/temp", f"{temperature}\n")  # thousandths of a degree
            self._write(f"sys/class/thermal/thermal_zone{number}/type", f"{('cpu', 'battery')[number]}\n")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _set_modes(self) -> None:
        """Read-only but for what `shell` may write; denied files and services unreadable."""
        for here, folders, files in os.walk(self.folder, topdown=False):
            for name in (*folders, *files):
                path = Path(here, name)
                if not path.is_symlink():
                    path.chmod(0o555 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o444)
        for denied in (*self._fixture.denied, *self._faults.denied):
            pattern = denied.lstrip("/") if "/" in denied else f"system/etc/dumpsys/{denied}.txt"
            for path in self.folder.glob(pattern):
                path.chmod(0)
        for name, mode in SHELL_MODES.items():
            (self.folder / name).chmod(mode)
        self.data.chmod(0o555 if self._faults.not_writable else 0o771)
        self.folder.chmod(0o555)

    def make_removable(self) -> None:
        """Let the owner delete the folder."""
        self.folder.chmod(0o700)
        for here, folders, _ in os.walk(self.folder):
            for name in folders:
                if not Path(here, name).is_symlink():
                    Path(here, name).chmod(0o700)


def _demand(path: Path, bit: int, error: int) -> None:
    """The owner must have this permission; asked of the mode itself, as root passes everywhere."""
    if not path.lstat().st_mode & bit:
        raise OSError(error, os.strerror(error))


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: not found; apt-get install {name}")
    return found


@cache
def _toybox_commands() -> frozenset[str]:
    printed = subprocess.run([_tool("toybox")], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    return frozenset(printed.split())


@cache
def _libraries() -> tuple[str, ...]:
    """What the shell and the tools are linked to, and nothing else of the host's."""
    command = ["ldd", _tool("mksh"), _tool("toybox")]
    printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    words = [word for line in printed.splitlines() for word in line.split() if not line.endswith(":")]
    return tuple(sorted({word for word in words if word.startswith("/")}))
