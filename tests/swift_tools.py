"""Debian's Swift compiler, unpacked in a cache folder, and what it makes of ios_demo/.

This machine's own release of Debian may have none: the packages come from the first release that has, and run in a root of
their own under proot.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from mobile_export.cache import cache_folder

RELEASE = "trixie"
PACKAGES = ("swiftlang", "libc6-dev", "libstdc++-14-dev")  # apt brings what they need
LEFT_OUT = ("swift_static", "swift/embedded", "liblldb", "lldb-server", "clangd", "sourcekit", "libLTO", "usr/share/doc")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ROOT = Path(__file__).parents[1]
DEMO = ROOT / "ios_demo"
CORE = DEMO / "MobileExportCore"
STUBS = Path(__file__).parent / "swift_stubs"
BUILT = cache_folder() / "ios" / hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]  # a folder for each work tree
ALL_TESTS = bool(os.environ.get("MOBILE_EXPORT_ALL_TESTS"))  # set by CI: what is missing there is a failure
KEPT = cache_folder() / "swift" / RELEASE

needs_swift = pytest.mark.skipif(
    not KEPT.exists() and not ALL_TESTS,
    reason="no Swift compiler is kept: MOBILE_EXPORT_ALL_TESTS=1 fetches Debian's, half a gigabyte, and needs proot",
)


def swift(*command: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command of the toolchain, as it ended. It sees the repository, the cache folder and temporary files."""
    seen = [Path("/dev"), Path("/proc"), Path(tempfile.gettempdir()), ROOT, cache_folder()]
    binds = [part for path in dict.fromkeys(seen) for part in ("-b", str(path))]
    given = {"HOME": "/", "PATH": "/usr/bin:/usr/libexec/swift/bin", **(environment or {})}
    inside = ["env", "-i", *(f"{name}={value}" for name, value in given.items())]
    return subprocess.run(
        [*inside, shutil.which("proot") or "proot", "-r", str(toolchain()), *binds, "-w", str(ROOT), *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def toolchain() -> Path:
    """The root folder with the compiler in it, made where it is not kept from before."""
    if not KEPT.exists():
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT.parent) as room:
            root = Path(room) / "root"
            root.mkdir()
            _unpack(_downloaded(Path(room)), root)
            root.rename(KEPT)
    return KEPT


def _downloaded(room: Path) -> list[Path]:
    """The packages and all they need, fetched by apt under settings of our own: this machine's packages stay as they are."""
    for name in ("lists/partial", "archives/partial", "sources", "preferences"):
        (room / name).mkdir(parents=True)
    (room / "status").touch()
    (room / "sources/debian.sources").write_text(
        f"Types: deb\nURIs: {_mirror()}\nSuites: {RELEASE}\nComponents: main\nSigned-By: {KEYRING}\n"
    )
    settings = {
        "Dir::State::lists": room / "lists",
        "Dir::State::status": room / "status",
        "Dir::Cache": room,
        "Dir::Cache::archives": room / "archives",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": room / "sources",
        "Dir::Etc::preferencesparts": room / "preferences",
        "APT::Install-Recommends": "false",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    for command in (["update"], ["install", "--yes", "--download-only", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", *options, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:  # in CI, too: a mirror without that release is no fault of the demo's
            pytest.skip(f"apt-get {command[0]} brings no Swift: {(done.stderr.splitlines() or ['it said nothing'])[-1]}")
    return sorted((room / "archives").glob("*.deb"))


def _mirror() -> str:
    """Where this machine gets Debian's packages."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    listing = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)"]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    mirrors = [line.split()[1] for line in listed.splitlines() if line.split()[0] == codename]
    if not mirrors:
        pytest.skip(f"apt has no mirror of {codename or 'Debian'}")
    return mirrors[0]


def _unpack(packages: Sequence[Path], root: Path) -> None:
    """Lay packages into a folder, without what no test needs."""
    left_out = [f"--exclude=*{part}*" for part in LEFT_OUT]
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as opened:
            subprocess.run(["tar", "-x", "-C", str(root), *left_out], stdin=opened.stdout, check=True)
        assert opened.returncode == 0, package
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    (root / "tmp").mkdir(exist_ok=True)
