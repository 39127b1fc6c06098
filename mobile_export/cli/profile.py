"""`mobile-export profile`: how fast an artifact loads and runs, here or on phones, and what it keeps resident."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.files import put, writable
from mobile_export.cli.options import AdbPathOption, JsonOption, percentage
from mobile_export.cli.profile_page import page, phones_page
from mobile_export.cli.say import done, say, table, warn
from mobile_export.errors import EXIT_NO, EXIT_YES, InputError, UsageError
from mobile_export.units import counted

if TYPE_CHECKING:
    from mobile_export.measure.adb.phones import Phones
    from mobile_export.measure.compare import Change
    from mobile_export.measure.profile import Profile
    from mobile_export.measure.request import Cores, Request

COMPARE, CALIBRATE = "compare", "calibrate"
PNG = ".png"
OPTIONAL = frozenset({"--adb"})  # what may stand without a value
USUAL_REST_S = 1  # between runs on a phone


def profile(
    artifact: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT",
            help="An artifact folder, or the file in it. Or: compare BEFORE.json AFTER.json. Or: calibrate.",
        ),
    ],
    threads: Annotated[str, typer.Option("--threads", help="auto, or numbers to try: 1,2,4.")] = "auto",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Single tokens after it.")] = 64,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Processes for each number of threads.")] = 5,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="How XNNPACK keeps packed weights. plain: each delegate its own. cache: equal ones once. "
            "file: mapped from a file made on the first run.",
        ),
    ] = "plain",
    cores: Annotated[str, typer.Option("--cores", help="To stay on: all, or 0,1; on a phone also big.")] = "all",
    runner: Annotated[
        str,
        typer.Option(
            "--runner",
            help="auto, or an executable; here also cpp or python, on a phone bundle, or app: the demo app. "
            "auto: cpp, or python where that cannot be built; on a phone bundle.",
        ),
    ] = "auto",
    adb: Annotated[
        str | None,
        typer.Option(
            "--adb",
            metavar="[SERIAL,...|all]",
            help="Measure on an Android phone: the only one adb sees (or $ANDROID_SERIAL), those named, or all.",
            show_default=False,
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="With --adb: pip may fetch what the bundled runner is built from, 18 MB, once.")
    ] = False,
    adb_path: AdbPathOption = None,
    rest: Annotated[
        float | None,
        typer.Option("--rest", min=0, help="Seconds before each run. Default: 0, on a phone 1.", show_default=False),
    ] = None,
    fixed_clocks: Annotated[
        bool, typer.Option("--fixed-clocks/--no-fixed-clocks", help="On a phone that can: clocks it holds while hot, too.")
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was pushed on the phone: the next push is short.")] = False,
    cold: Annotated[
        bool | None,
        typer.Option("--cold/--no-cold", help="Also start once with the files not in memory. Default: yes, in the app no."),
    ] = None,
    ops: Annotated[bool, typer.Option("--ops", help="Also time every operator of a single-token step.")] = False,
    curve: Annotated[
        Path | None,
        typer.Option("--curve", help="Draw decode rates over the context: an .svg or .png.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A profile.json to write.", show_default=False)] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Most seconds of one process.")] = 600,
    max_regression: Annotated[
        str, typer.Option("--max-regression", help="compare: exit code 1 if a quantity got worse by more.")
    ] = "10%",
    as_json: JsonOption = False,
) -> int:
    """Measure ARTIFACT, here or with --adb on phones: load, init, prompt and single-token rates, memory; find the best threads.

    With `compare` two profiles are held against each other; exit code 1 if the second is worse. With `calibrate` no artifact is
    run: --out is what `check --profile` predicts any model's speed from.

    Example: mobile-export profile out --out profile.json
    """
    if artifact[0] == COMPARE:
        return _compare(artifact[1:], max_regression, as_json)
    if artifact[0] == CALIBRATE and len(artifact) == 1:
        from mobile_export.cli.calibrate import calibrate

        counts = () if threads == "auto" else _numbers("--threads", threads, least=1)
        return calibrate(counts, runs, writable("--out", out), as_json=as_json)
    if len(artifact) > 1:
        raise UsageError(f"ARTIFACT {artifact[1]}", "one artifact at a time", "or write: profile compare BEFORE AFTER")
    if weights not in ("plain", "cache", "file"):
        raise UsageError(f"--weights {weights}", "no such way", "write plain, cache or file")
    for option, path in (("--curve", curve), ("--out", out)):
        writable(option, path)
    if curve is not None and curve.suffix == PNG:
        from mobile_export.measure.drawing_png import check_png

        check_png("name a file that ends in .svg")
    asked = {"--keep": keep, "--download": download, "--adb-path": adb_path is not None, "--no-fixed-clocks": not fixed_clocks}
    if adb is None and any(asked.values()):
        raise UsageError(next(option for option, is_given in asked.items() if is_given), "is for phones", "add --adb")
    if adb is None and runner in ("bundle", "app"):
        raise UsageError(f"--runner {runner}", "is for phones", "add --adb, or write cpp")
    from mobile_export.measure.request import Request

    request = Request(
        threads=() if threads == "auto" else _numbers("--threads", threads, least=1),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        runs=runs,
        weights=weights,
        runner=runner,
        download=download,
        cores=_cores(cores),
        cold=runner != "app" if cold is None else cold,
        operators=ops,
        curve=curve is not None,
        rest_s=(0 if adb is None else USUAL_REST_S) if rest is None else rest,
        timeout_s=timeout,
    )
    if adb is not None:
        return _on_phones(Path(artifact[0]), request, _phones(adb, adb_path, fixed_clocks, keep), out, curve, as_json)
    from mobile_export.measure.host import profile_artifact

    found = profile_artifact(Path(artifact[0]), request, say, warn)
    done()
    _write(found, out, curve)
    typer.echo(json.dumps(dataclasses.asdict(found)) if as_json else page(found))
    return EXIT_YES


def _phones(adb: str, adb_path: str | None, fixed_clocks: bool, keep: bool) -> Phones:
    from mobile_export.measure.adb.chosen import serials_in
    from mobile_export.measure.adb.phones import Phones

    return Phones(serials_in(adb), adb_path, fixed_clocks, keep)


def _on_phones(artifact: Path, request: Request, phones: Phones, out: Path | None, curve: Path | None, as_json: bool) -> int:
    from mobile_export.measure.adb.phones import profile_on_phones

    profiles, errors = profile_on_phones(artifact, request, phones, say, warn)
    done()
    several = phones.several
    if not several and errors:
        raise errors[0]
    for found in profiles:
        _write(found, *((file and _of_phone(file, found) if several else file) for file in (out, curve)))
    if as_json:
        values = [dataclasses.asdict(found) for found in profiles]
        typer.echo(json.dumps({"profiles": values, "errors": [str(error) for error in errors]} if several else values[0]))
    elif profiles:
        typer.echo(phones_page(profiles) if several else page(profiles[0]))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return errors[0].exit_code if errors else EXIT_YES


def _of_phone(file: Path, found: Profile) -> Path:
    """A file beside `file`, with the phone's serial number in its name."""
    assert found.phone
    serial = re.sub(r"[^\w.-]", "_", found.phone.serial)
    return file.with_name(f"{file.stem}-{serial}{file.suffix}")


def _write(found: Profile, out: Path | None, curve: Path | None) -> None:
    from mobile_export.measure.curve import curve_svg, draw
    from mobile_export.measure.drawing_png import png_of
    from mobile_export.measure.profile import to_json

    contents = {out: to_json(found).encode()} if out else {}
    if curve and found.curve:
        title = f"{found.artifact}, {counted(found.best.threads, 'thread')}, {found.machine.cpu}"
        png = curve.suffix == PNG
        contents[curve] = png_of(draw(found.curve, title)) if png else curve_svg(found.curve, title).encode()
    for path, content in contents.items():
        put(path, content)


def _cores(text: str) -> Cores:
    match text:
        case "all" | "big":
            return text
    return _numbers("--cores", text, least=0)


def _numbers(option: str, text: str, *, least: int) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) >= least for part in parts):
        raise UsageError(f"{option} {text}", f"not numbers from {least} on", "write them like 1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


# --- compare -------------------------------------------------------------------------------------------------------------


def _compare(paths: Sequence[str], max_regression: str, as_json: bool) -> int:
    from mobile_export.measure.compare import compare
    from mobile_export.measure.profile import read_profile

    if len(paths) != 2:
        raise UsageError("profile compare", f"takes two profiles, not {len(paths)}", "write: profile compare BEFORE AFTER")
    limit = percentage("--max-regression", max_regression)
    before, after = (read_profile(Path(path)) for path in paths)
    if before.machine.cpu != after.machine.cpu:
        warn(f"measured on different machines: {before.machine.cpu}, {after.machine.cpu}")
    changes = compare(before, after, limit)
    if not changes:
        had, has = (", ".join(str(at.threads) for at in each.by_threads) for each in (before, after))
        what = f"measured at {has} threads, {paths[0]} at {had}"
        raise InputError(paths[1], what, "measure both with the same --threads")
    regressed = [change for change in changes if change.regressed]
    if as_json:
        typer.echo(json.dumps({"changes": [dataclasses.asdict(change) for change in changes], "passed": not regressed}))
    else:
        typer.echo(_changes(changes))
        typer.echo(f"\n{len(regressed)} worse by more than {100 * limit:g} %")
    return EXIT_NO if regressed else EXIT_YES


def _changes(changes: Sequence[Change]) -> str:
    rows = [
        (change.name, str(change.threads), f"{change.before:.4g}", f"{change.after:.4g}", _worse(change)) for change in changes
    ]
    return table(("", "threads", "before", "after", "change"), rows)


def _worse(change: Change) -> str:
    if not change.worse:
        return "none"
    word = "worse" if change.worse > 0 else "better"
    return f"{100 * abs(change.worse):.1f} % {word}" + (", TOO MUCH" if change.regressed else "")
