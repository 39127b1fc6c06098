"""The folder on a phone that holds a runner and a model: what is not there yet is pushed, and at the end nothing is left."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mobile_export.errors import MissingTool
from mobile_export.manifest import FileDigest
from mobile_export.measure.adb.preflight import ROOM
from mobile_export.measure.adb.transport import Device
from mobile_export.units import megabytes

ROOT = f"{ROOM}/mobile-export"
HASHED_MB_PER_S = 20  # by the slowest phone's sha256sum
SPARE_MIB = 64  # what a run writes, and then some
PID = "pid"  # file with the number of the process that runs
TRACE = "trace.etdp"
WRITTEN = (PID, "out", "err", "draw", TRACE)  # by a run


@dataclass(frozen=True)
class Folder:
    """A folder on a phone, named by what it holds. files: here -> what it is called there."""

    path: str
    files: Mapping[Path, FileDigest]


def folder_for(files: Mapping[Path, FileDigest]) -> Folder:
    """The folder for some files."""
    held = "".join(f"{file.name}\0{file.sha256}\0" for file in files.values())
    return Folder(f"{ROOT}/{hashlib.sha256(held.encode()).hexdigest()[:16]}", files)


@contextmanager
def on_phone(
    device: Device,
    folder: Folder,
    *,
    free_mib: float | None,
    keep: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> Iterator[list[str]]:
    """Have the files on the phone; whatever happens, end what runs there and remove the files.

    Args:
        free_mib: room for files on the phone. keep: leave the files.
    Yields:
        Shell commands to run on the phone at the end, too; none as yet.
    Raises:
        MissingTool: no room, or the phone cannot be written to or be reached.
    """
    undo: list[str] = []
    try:
        _push_missing(device, folder, free_mib, say)
        yield undo
    finally:
        say("cleaning up")
        _clean(device, folder, ";".join(undo) or "true", keep, warn)


def _push_missing(device: Device, folder: Folder, free_mib: float | None, say: Callable[[str], None]) -> None:
    total = sum(file.bytes for file in folder.files.values())
    path = quote(folder.path)
    answers = device.ask(
        f"making {folder.path}",
        {"made": f"mkdir -p {path} && [ -w {path} ]", "held": f"cd {path} && sha256sum ./*"},
        timeout_s=device.adb.patience_s + total / (HASHED_MB_PER_S * 1e6),
    )
    if answers["made"].code:
        what = f"does not let us write to {ROOM}: {answers['made'].text.strip() or 'no reason given'}"
        raise MissingTool(device.name, what, f"check: adb shell ls -ld {ROOM}")
    held = digests_in(answers["held"].text)
    missing = {here: file for here, file in folder.files.items() if held.get(file.name) != file.sha256}
    if missing:
        push_files(device, missing, folder.path, free_mib, "free some, or remove what --keep left", say)


def digests_in(said: str) -> dict[str, str]:
    """Names and SHA-256 in what `sha256sum ./*` printed; older phones have no such program.

    >>> digests_in("ab" * 32 + "  ./model.pte\\nsha256sum: ./x: Is a directory") == {"model.pte": "ab" * 32}
    True
    """
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64}) [ *]\./(.+)$", said, re.MULTILINE)}


def push_files(
    device: Device,
    files: Mapping[Path, FileDigest],
    folder: str,
    free_mib: float | None,
    then: str,
    say: Callable[[str], None],
) -> None:
    """Push files into a folder that is there, under the names they are to have.

    Args:
        free_mib: room for files on the phone. then: what to do where there is too little.
    Raises:
        MissingTool: no room, or pushing fails.
    """
    needed = sum(file.bytes for file in files.values())
    if free_mib is not None and needed > (free_mib - SPARE_MIB) * 2**20:
        what = f"has {free_mib:.0f} MiB of room, {needed / 2**20 + SPARE_MIB:.0f} are needed"
        raise MissingTool(device.name, what, then)
    said = f"pushing {megabytes(needed)}"
    say(said)
    with tempfile.TemporaryDirectory() as room:
        sources = [_named(here, file.name, Path(room)) for here, file in files.items()]
        device.push(sources, folder, lambda percent: say(f"{said}: {percent}") if percent else None)


def _named(here: Path, name: str, room: Path) -> Path:
    """The file under the name it is to have: adb takes it from the source when it is given several."""
    if here.name == name:
        return here
    (room / name).symlink_to(here.resolve())
    return room / name


def _clean(device: Device, folder: Folder, undo: str, keep: bool, warn: Callable[[str], None]) -> None:
    # A shell that lost its client goes on, and may be about to start the runner: whatever has the folder in its arguments is
    # ended, but for this shell, which spells it otherwise.
    parent, name = folder.path.rsplit("/", 1)
    path = f"{quote(parent)}/{name[0]}''{name[1:]}"
    written = " ".join(f"{path}/{each}" for each in WRITTEN)
    commands = {
        "kill": f"pkill -9 -f '[{name[0]}]{name[1:]}';[ -s {path}/{PID} ]&&p=$(cat {path}/{PID})&&kill -9 -- -$p $p",
        "remove": f"rm -f {written}" if keep else f"rm -rf {path}; rmdir {ROOT}; [ ! -e {path} ]",
        "undo": undo,
    }
    for attempt in range(2):
        try:
            if attempt:
                device.revive(cleaning=True)
            answers = device.ask("cleaning up", commands, timeout_s=device.adb.patience_s, cleaning=True)
        except MissingTool as error:
            complaint = error.what
        else:
            if answers["remove"].code == 0:
                return
            complaint = answers["remove"].text.strip()
    warn(f"{device.name}: could not be cleaned up: {complaint}; adb -s {device.serial} shell rm -rf {folder.path}")
