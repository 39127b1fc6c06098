"""`mobile-export push`: put an artifact on Android phones, where the demo app finds it; list and remove what is there."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobile_export.cli.options import AdbPathOption, JsonOption
from mobile_export.cli.say import done, say, table, warn
from mobile_export.errors import EXIT_YES, MobileExportError, UsageError
from mobile_export.units import megabytes

if TYPE_CHECKING:
    from mobile_export.measure.adb.transport import Device

    Work = Callable[[Device, Callable[[str], None]], tuple[dict[str, Any], str]]


def push(
    artifact: Annotated[
        Path | None, typer.Argument(metavar="[ARTIFACT]", help="An artifact folder, or the file in it.", show_default=False)
    ] = None,
    adb: Annotated[
        str,
        typer.Option(
            "--adb",
            metavar="[SERIAL,...|all]",
            help="The phones. Default: the only one adb sees, or $ANDROID_SERIAL.",
            show_default=False,
        ),
    ] = "",
    adb_path: AdbPathOption = None,
    lists: Annotated[bool, typer.Option("--list", help="Show what artifacts are there.")] = False,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="NAME", help="Remove this one from there.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Put ARTIFACT on an Android phone, under its folder's name, where the demo app finds it (android_demo/).

    Files that are there already are not pushed again; an artifact is there whole or not at all.

    Example: mobile-export push out
    """
    work = _work(artifact, lists, remove)
    from mobile_export.measure.adb.chosen import PATIENCE_S, chosen, serials_in
    from mobile_export.measure.adb.client import find_adb
    from mobile_export.measure.adb.transport import Adb, Device

    bridge = Adb(find_adb(adb_path), PATIENCE_S)
    say("looking for phones")
    bridge.start()
    serials = chosen(bridge, serials_in(adb), warn)
    values, lines = [], []
    errors: list[MobileExportError] = []
    for serial in serials:

        def tell(line: str, serial: str = serial) -> None:
            say(line if len(serials) == 1 else f"{serial}: {line}")

        try:
            found, line = work(Device(bridge, serial), tell)
            values.append({"serial": serial, **found})
            lines.append(line)
        except MobileExportError as error:
            if len(serials) == 1:
                raise
            errors.append(error)
    done()
    if as_json:
        typer.echo(json.dumps({"phones": values, "errors": [str(each) for each in errors]}))
    else:
        typer.echo("\n".join(lines))
    for each in errors:
        print(f"error: {each}", file=sys.stderr)
    return errors[0].exit_code if errors else EXIT_YES


def _work(artifact: Path | None, lists: bool, remove: str | None) -> Work:
    """What is done with every phone: gives fields for --json, and a text."""
    if sum((artifact is not None, lists, remove is not None)) != 1:
        raise UsageError("push", "takes one of ARTIFACT, --list and --remove NAME", "write: mobile-export push ARTIFACT")
    if remove is not None:
        return lambda device, _: _remove(device, remove)
    if artifact is None:
        return lambda device, _: _list(device)
    from mobile_export.measure.adb.artifacts import files_to_push, name_of, push_artifact

    files, name = files_to_push(artifact), name_of(artifact)

    def put(device: Device, tell: Callable[[str], None]) -> tuple[dict[str, Any], str]:
        pushed = push_artifact(device, name, files, tell)
        new = f"{megabytes(pushed.pushed_bytes)} pushed" if pushed.pushed_bytes else "nothing new to push"
        return dataclasses.asdict(pushed), f"{device.name}: {pushed.path}: {megabytes(pushed.bytes)}, {new}"

    return put


def _list(device: Device) -> tuple[dict[str, Any], str]:
    from mobile_export.measure.adb.artifacts import ARTIFACTS, artifacts_on

    found = artifacts_on(device)
    rows = [(each.name, "-" if each.bytes is None else megabytes(each.bytes)) for each in found]
    text = table((f"{device.name}: {ARTIFACTS}", ""), rows) if rows else f"{device.name}: no artifacts in {ARTIFACTS}"
    return {"artifacts": [dataclasses.asdict(each) for each in found]}, text


def _remove(device: Device, name: str) -> tuple[dict[str, Any], str]:
    from mobile_export.measure.adb.artifacts import remove_artifact

    remove_artifact(device, name)
    return {"removed": name}, f"{device.name}: {name} removed"
