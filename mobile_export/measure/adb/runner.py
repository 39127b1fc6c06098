"""Which program measures on a phone, and whether the phone's processor runs it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobile_export.errors import MissingTool, UsageError
from mobile_export.manifest import FileDigest, Manifest
from mobile_export.measure.adb.app import check_app_request
from mobile_export.measure.phone import Phone
from mobile_export.measure.request import Request

ELF_MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}  # as Android names them
EXPERIMENTAL = "the bundled runner is experimental: tested under arm64 emulation, never yet on a phone"


@dataclass(frozen=True)
class PhoneRunner:
    """A runner as files to push. command: starts it in their folder; none: it is the app, which is installed there.

    abi: it is made for; None where any phone runs it.
    """

    name: str
    files: dict[Path, FileDigest]
    command: tuple[str, ...]
    abi: str | None


def phone_runner(request: Request, manifest: Manifest, say: Callable[[str], None], warn: Callable[[str], None]) -> PhoneRunner:
    """The runner that was asked for.

    Raises:
        UsageError: it is none for phones, no file, or cannot do what is asked, or not with this format.
        MissingTool: the bundle cannot be built here.
    """
    if request.runner in ("cpp", "python"):
        raise UsageError(
            f"--runner {request.runner}", "runs on this machine alone", "write bundle or app, or name an executable"
        )
    if request.runner == "app":
        check_app_request(request, manifest)
        return PhoneRunner("app", {}, (), None)
    if request.runner not in ("auto", "bundle"):
        return _own(Path(request.runner))
    if manifest.pte is None:
        what = f"the bundled runner runs .pte files, this is {manifest.format}"
        raise UsageError("--runner bundle", what, "name an executable for it with --runner PATH")
    from mobile_export.measure.bundle import arm64_bundle

    bundle = arm64_bundle(say, download=request.download)
    warn(EXPERIMENTAL)
    return PhoneRunner("bundle", {bundle.folder / file.name: file for file in bundle.files}, bundle.command, "arm64-v8a")


def check_abi(where: str, runner: PhoneRunner, phone: Phone) -> None:
    """Raises:
    MissingTool: the phone's processor does not run it.
    """
    if runner.abi and phone.abis and runner.abi not in phone.abis:
        what = f"runs {', '.join(phone.abis)}, the runner is for {runner.abi}"
        raise MissingTool(where, what, f"name one for {phone.abis[0]} with --runner PATH")


def _own(path: Path) -> PhoneRunner:
    try:
        held = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--runner {path}", f"cannot be read: {error.strerror}", "name an executable file") from None
    machine = struct.unpack_from("<H", held, 18)[0] if held[:4] == b"\x7fELF" and len(held) >= 20 else None
    digest = FileDigest("runner", len(held), hashlib.sha256(held).hexdigest())
    return PhoneRunner(str(path), {path: digest}, ("./runner",), ELF_MACHINES.get(machine) if machine else None)
