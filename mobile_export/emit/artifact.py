"""An artifact folder appears whole or not at all: written beside its place, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from mobile_export.errors import MissingTool, UsageError
from mobile_export.manifest import NAME as MANIFEST
from mobile_export.units import megabytes

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


@contextlib.contextmanager
def new_artifact(out: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Give a fresh folder to write an artifact into; on success it takes `out`'s place, on any failure it vanishes.

    An older artifact at `out` stays whole until the last moment, and if anything fails, for good. SIGTERM counts as a
    failure like Ctrl-C. What an earlier run left behind when it was killed outright is removed.

    Args:
        needed_bytes: what will be written at least; checked against the free space first.
    Raises:
        UsageError: `out` is a file, or a folder that holds something else than an artifact.
        MissingTool: the disk is full or the place cannot be written.
    """
    check_out(out)
    named, out = out, out.resolve()  # a link is followed, and "." has a name
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    with _terminate_as_interrupt():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(out)
            free = shutil.disk_usage(out.parent).free
            if free < needed_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            staging.mkdir()
            yield staging
            _swap(staging, out)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                free = shutil.disk_usage(out.parent).free
                what = f"no space left on the disk ({megabytes(free)} free, {megabytes(needed_bytes)} needed)"
                raise MissingTool(str(named), what, "free some, or name another place with --out") from None
            if error.errno in UNWRITABLE:
                raise MissingTool(str(named), f"cannot be written: {error.strerror}", "name another place with --out") from None
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_out(out: Path) -> None:
    """Refuse a place an artifact must not replace; call it before the long work, too.

    Raises:
        UsageError: `out` is a file, or a folder that holds something else than an artifact.
    """
    try:
        file = out.exists() and not out.is_dir()
        held = out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()
    except OSError as error:
        raise UsageError(f"--out {out}", f"cannot be used: {error.strerror}", "name another place") from None
    if file:
        raise UsageError(f"--out {out}", "is a file", "name a folder")
    if held:
        raise UsageError(f"--out {out}", "is a folder with other things in it", "name a new folder, or an older artifact's")


def _swap(staging: Path, out: Path) -> None:
    """Rename, with the old artifact set aside until the new one is in place."""
    for file in staging.iterdir():
        _flush(file)
    if not out.exists():
        staging.rename(out)
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
    """Remove what killed runs left; put an old artifact back whose replacement never came."""
    for kind in ("partial", "old"):
        for leftover in out.parent.glob(f".{glob.escape(out.name)}.{kind}-*"):
            pid = leftover.name.rpartition("-")[2]
            if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):  # containers use ids again
                if kind == "old" and not out.exists():
                    leftover.rename(out)
                else:
                    shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that what is half-written is removed."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are not ours to handle
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
