"""Files an option names, to be written when the work is done."""

from __future__ import annotations

from pathlib import Path

from mobile_export.errors import UsageError


def writable(option: str, path: Path | None) -> Path | None:
    """The path, if a file can be put there.

    Raises:
        UsageError: it is a folder, or its folder does not exist.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a folder" if path.is_dir() else "its folder does not exist"
        raise UsageError(f"{option} {path}", what, "name a file")
    return path


def put(path: Path, content: bytes) -> None:
    """Write beside the path and rename: a failed run leaves the old file whole."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    beside.replace(path)
