"""Artifacts on a phone, where the demo app finds them: put there whole or not at all, listed, removed.

An app may read what lies under /data/local/tmp and is readable by all, whoever pushed it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mobile_export.errors import InputError, MissingTool, UsageError
from mobile_export.manifest import NAME, FileDigest, check_files, digest_of, folder_of, read_manifest
from mobile_export.measure.adb.folder import HASHED_MB_PER_S, ROOT, digests_in, push_files
from mobile_export.measure.adb.preflight import DF, ROOM, free_kib
from mobile_export.measure.adb.transport import Answer, Device

ARTIFACTS = f"{ROOT}/artifacts"
GENAI = "genai_config.json"  # of onnxruntime-genai
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Pushed:
    """An artifact that a phone has now. pushed_bytes: of it, what was not there already."""

    serial: str
    path: str
    bytes: int
    pushed_bytes: int


@dataclass(frozen=True)
class OnPhone:
    """An artifact on a phone. bytes: None where the phone cannot tell."""

    name: str
    bytes: int | None


def files_to_push(artifact: Path) -> dict[Path, FileDigest]:
    """What an app needs of an artifact, by where it lies here.

    Raises:
        InputError: no artifact, its files are not the manifest's or lie in another folder.
        UsageError: it is for Apple's systems.
    """
    manifest = read_manifest(artifact)
    if manifest.package:
        what = "Core ML runs on Apple's systems alone"
        raise UsageError(str(artifact), what, "copy the folder into the iOS app, see ios_demo/README.md")
    folder = folder_of(artifact)
    check_files(folder, manifest)
    more = [GENAI] if manifest.onnx and (folder / GENAI).is_file() else []
    names = [*(file.name for file in manifest.files), *manifest.tokenizer_files, *more, NAME]
    for name in names:
        if Path(name).name != name:
            raise InputError(str(artifact), f"{name}: lies in another folder than the manifest", "export the artifact again")
        if not (folder / name).is_file():
            raise InputError(str(folder / name), "the manifest names it and it is not there", "export the artifact again")
    return {(folder / name).absolute(): digest_of(folder / name) for name in names}


def name_of(artifact: Path) -> str:
    """What an artifact is called on a phone: as its folder."""
    return safe(folder_of(artifact).resolve().name)


def safe(name: str) -> str:
    """A name any program there may take.

    >>> safe("SmolLM2 (w4)"), safe("..out"), safe("ü")
    ('SmolLM2-w4', 'out', 'model')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64].strip("-._") or "model"


def push_artifact(device: Device, name: str, files: Mapping[Path, FileDigest], say: Callable[[str], None]) -> Pushed:
    """Have an artifact on a phone under a name, in place of what had that name.

    It is put together in a folder beside its place, of files that are there already and those that are pushed; then renamed.

    Raises:
        MissingTool: no room, or the phone cannot be written to or be reached, or got something else.
    """
    new = f"{ARTIFACTS}/.{name}.new"
    try:
        return _put(device, name, new, files, say)
    except BaseException:  # Ctrl-C, too
        _leave_nothing(device, new)
        raise


def _put(device: Device, name: str, new: str, files: Mapping[Path, FileDigest], say: Callable[[str], None]) -> Pushed:
    path, old = f"{ARTIFACTS}/{name}", f"{ARTIFACTS}/.{name}.old"
    total = sum(file.bytes for file in files.values())
    patience_s = device.adb.patience_s + total / (HASHED_MB_PER_S * 1e6)
    say("looking at what is there")
    answers = device.ask(
        f"making {ARTIFACTS}",
        {
            # The app lists and reads as somebody else. An old artifact whose successor never came is put back.
            "made": f"rm -rf {new};mkdir -p {new}&&chmod 755 {ROOT} {ARTIFACTS} {new}&&[ -w {new} ]",
            "back": f"[ -e {path} ]||mv {old} {path};rm -rf {old}",
            "held": f"cd {path}&&sha256sum ./*",
            "room": DF,
        },
        timeout_s=patience_s,
    )
    if answers["made"].code:
        what = f"does not let us write to {ROOM}: {answers['made'].text.strip() or 'no reason given'}"
        raise MissingTool(device.name, what, f"check: adb shell ls -ld {ROOM}")
    held, wanted = digests_in(answers["held"].text), {file.name: file.sha256 for file in files.values()}
    missing = {here: file for here, file in files.items() if held.get(file.name) != file.sha256}
    if held == wanted:
        device.ask("cleaning up", {"remove": f"rm -rf {new}"}, timeout_s=device.adb.patience_s)
        return Pushed(device.serial, path, total, 0)
    if missing:
        free = free_kib(answers["room"].text)
        then = "free some, or: mobile-export push --list, and --remove NAME"
        push_files(device, missing, new, None if free is None else free / 1024, then, say)
    kept = " ".join(quote(file.name) for here, file in files.items() if here not in missing)
    say("checking what arrived")
    answers = device.ask(
        "checking what arrived",
        {
            "kept": f'cd {new}&&for f in {kept};do ln {path}/"$f" "$f"||cp {path}/"$f" "$f"||exit 1;done',
            "arrived": f"cd {new}&&chmod 644 ./*&&sha256sum ./*",
        },
        timeout_s=patience_s,
    )
    _check_arrived(device, answers, wanted)
    put = f"{{ [ ! -e {path} ]||mv {path} {old};}}&&mv {new} {path}&&rm -rf {old}"
    answer = device.ask("putting it in its place", {"put": put}, timeout_s=device.adb.patience_s)["put"]
    if answer.code:
        raise MissingTool(device.name, f"cannot rename {new}: {answer.text.strip()}", "run it again")
    return Pushed(device.serial, path, total, sum(file.bytes for file in missing.values()))


def artifacts_on(device: Device) -> list[OnPhone]:
    """The artifacts on a phone, by name.

    Raises:
        MissingTool: the phone cannot be reached.
    """
    commands = {"names": f"cd {ARTIFACTS}&&ls -1", "sizes": f"cd {ARTIFACTS}&&stat -c '%s %n' ./*/*"}
    answers = device.ask("listing artifacts", commands, timeout_s=device.adb.patience_s)
    if answers["names"].code:
        return []
    sizes: dict[str, int] = {}
    for size, name in re.findall(r"^(\d{1,15}) \./([^/\n]+)/", answers["sizes"].text, re.MULTILINE):
        sizes[name] = sizes.get(name, 0) + int(size)
    names = sorted(line for line in answers["names"].text.splitlines() if SAFE.fullmatch(line))
    return [OnPhone(name, sizes.get(name)) for name in names]


def remove_artifact(device: Device, name: str) -> None:
    """Remove an artifact from a phone.

    Raises:
        UsageError: it has none of this name.
        MissingTool: the phone cannot be reached, or keeps it.
    """
    there = [each.name for each in artifacts_on(device)]
    if name not in there:
        then = f"there is {', '.join(there)}" if there else "there is none"
        raise UsageError(f"--remove {name}", f"{device.name} has no such artifact", then)
    path = f"{ARTIFACTS}/{name}"
    removed = f"rm -rf {path};rmdir {ARTIFACTS} {ROOT} 2>/dev/null;[ ! -e {path} ]"
    answer = device.ask(f"removing {path}", {"removed": removed}, timeout_s=device.adb.patience_s)["removed"]
    if answer.code:
        raise MissingTool(device.name, f"does not remove {path}: {answer.text.strip() or 'no reason given'}", "run it again")


def _check_arrived(device: Device, answers: Mapping[str, Answer], wanted: Mapping[str, str]) -> None:
    if answers["kept"].code:
        raise MissingTool(device.name, f"cannot copy a file: {answers['kept'].text.strip()}", "run it again")
    arrived = digests_in(answers["arrived"].text)
    if arrived and arrived != wanted:  # a phone without sha256sum tells nothing
        other = next(name for name in {**wanted, **arrived} if wanted.get(name) != arrived.get(name))
        raise MissingTool(
            device.name, f"{other} did not arrive as it was sent", "run it again; if it stays so: adb kill-server"
        )


def _leave_nothing(device: Device, path: str) -> None:
    """Remove what is half-written. Where the phone cannot be reached any more, the next push does."""
    remove = {"remove": f"rm -rf {path};rmdir {ARTIFACTS} {ROOT}"}
    with contextlib.suppress(MissingTool):
        device.revive(cleaning=True)
        device.ask("cleaning up", remove, timeout_s=device.adb.patience_s, cleaning=True)
