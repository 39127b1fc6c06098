"""Finds the adb client."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from mobile_export.errors import MissingTool, UsageError

THEN = "pip install 'mobile-export[adb]', or name it with --adb-path"


def find_adb(given: str | None = None) -> Path:
    """--adb-path, $ADB, the Android SDK's, the one on the path, or the one that the package adbutils carries.

    Raises:
        UsageError: `given` is no program.
        MissingTool: there is none.
    """
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise UsageError(f"--adb-path {given}", "is no program", "name the adb of the Android platform tools")
        return Path(found)
    if named := os.environ.get("ADB"):
        found = shutil.which(named)
        if found is None:
            raise MissingTool(f"$ADB {named}", "is no program", "unset it, or name the adb of the Android platform tools")
        return Path(found)
    homes = [os.environ[name] for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT") if os.environ.get(name)]
    tools = [str(Path(home) / "platform-tools" / "adb") for home in homes]
    found = next((path for path in map(shutil.which, [*tools, "adb", *_carried()]) if path), None)
    if found is None:
        raise MissingTool("adb", "is not installed", THEN)
    return Path(found)


def _carried() -> list[str]:
    """The adb within adbutils, where that is installed."""
    try:
        files = importlib.metadata.files("adbutils") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [str(file.locate()) for file in files if file.name == "adb"]
