"""Which shared libraries an ELF program needs, and those need in turn: what has to travel with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mobile_export.errors import MissingTool
from mobile_export.measure.build import run_tool


def needed_libraries(program: Path, readelf: str, find: Callable[[str], Path | None]) -> dict[str, Path]:
    """Name -> file of every library that is loaded with a program; glibc names its loader among them.

    Args:
        readelf: the program of binutils.
        find: the file of a library of this name, None where there is none.
    Raises:
        MissingTool: a library is nowhere, or readelf fails.
    """
    found: dict[str, Path] = {}
    waiting = [program]
    for path in waiting:
        for name in _needed(path, readelf):
            if name not in found:
                library = find(name)
                if library is None:
                    then = "install the C and C++ libraries of the compiler's target"
                    raise MissingTool(name, f"{path.name} needs this library and it is nowhere", then)
                found[name] = library
                waiting.append(library)
    return found


def _needed(path: Path, readelf: str) -> list[str]:
    command = [readelf, "--dynamic", "--wide", str(path)]
    section = run_tool(command, readelf, f"cannot read {path.name}", "install binutils of the compiler's target")
    return re.findall(r"\(NEEDED\).*\[(.*)\]", section)
