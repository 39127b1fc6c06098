"""Gets the executorch wheel for arm64 Linux, of the version that is installed: the C++ libraries a phone runs."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from mobile_export.cache import cache_folder
from mobile_export.errors import MissingTool
from mobile_export.manifest import FileDigest, sha256
from mobile_export.measure.build import run_tool
from mobile_export.units import megabytes

PYTHON = "3.11"  # whatever runs here: the C++ libraries do not depend on it
PLATFORM = "manylinux_2_28_aarch64"
PINNED = {
    "1.5.1": FileDigest(
        "executorch-1.5.1-cp311-cp311-manylinux_2_28_aarch64.whl",
        17_810_491,
        "8ee02348a3ea80ddf770822911ebf78da616b73afce0fbaaa79f23311c88c66a",
    ),
}
NEEDED = ("executorch/lib/", "executorch/include/", "executorch/share/cmake/")


def pinned_wheel() -> FileDigest:
    """The wheel that belongs to the installed executorch.

    Raises:
        MissingTool: no executorch, or one whose arm64 wheel nobody has looked at.
    """
    then = "pip install executorch, with the constraints of mobile-export, or pass --runner PATH"
    try:
        version = importlib.metadata.version("executorch").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        raise MissingTool("executorch", "is not installed", then) from None
    if version not in PINNED:
        known = ", ".join(PINNED)
        raise MissingTool(f"executorch {version}", f"its arm64 wheel was never tried, only that of {known}", then)
    return PINNED[version]


def unpack_arm64_wheel(wheel: FileDigest, room: Path, say: Callable[[str], None], *, download: bool) -> Path:
    """The wheel's package, unpacked in `room`: libraries, headers, CMake files. pip fetches it once into the cache folder.

    Args:
        download: whether it may.
    Raises:
        MissingTool: it may not, pip cannot fetch it, or the file is another than the pinned one.
        OSError: the disk is full.
    """
    kept = cache_folder() / "wheels" / wheel.name
    if not kept.is_file() or sha256(kept) != wheel.sha256:
        if not download:
            what = f"is not here yet: {megabytes(wheel.bytes)}, which the runner for phones is built from"
            raise MissingTool(wheel.name, what, "add --download, or pass --runner PATH")
        say(f"fetching {wheel.name} ({megabytes(wheel.bytes)})")
        fetched = _fetch(wheel, room)
        kept.parent.mkdir(exist_ok=True)
        fetched.replace(kept)
    with zipfile.ZipFile(kept) as archive:
        archive.extractall(room, [name for name in archive.namelist() if name.startswith(NEEDED)])
    return room / "executorch"


def _fetch(wheel: FileDigest, room: Path) -> Path:
    version = wheel.name.split("-")[1]
    folder = room / "fetched"
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--retries", "2", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", PLATFORM, "--python-version", PYTHON, "--dest", str(folder)]
    then = "look at pip's network and index, or name a folder with this wheel in PIP_FIND_LINKS"
    run_tool([*command, f"executorch=={version}"], "pip", f"cannot fetch {wheel.name}", then)
    fetched = folder / wheel.name
    if not fetched.is_file():
        found = ", ".join(path.name for path in folder.iterdir())
        raise MissingTool("pip", f"fetched {found}, not {wheel.name}", then)
    found = sha256(fetched)
    if found != wheel.sha256:
        what = f"SHA-256 {found[:12]}..., mobile-export knows {wheel.sha256[:12]}..."
        raise MissingTool(wheel.name, what, "do not use it; fetch it from another index")
    return fetched
