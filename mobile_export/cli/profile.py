"""`mobile-export profile`: how fast an artifact loads and runs here, and what it keeps resident."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.options import JsonOption, percentage
from mobile_export.cli.say import done, say, table, warn
from mobile_export.errors import EXIT_NO, EXIT_YES, InputError, UsageError
from mobile_export.units import counted

if TYPE_CHECKING:
    from mobile_export.measure.compare import Change
    from mobile_export.measure.profile import AtThreads, OperatorTime, Profile, Spread

PNG = ".png"
COMPARE, CALIBRATE = "compare", "calibrate"


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
    affinity: Annotated[
        str | None, typer.Option("--affinity", help="Cores to stay on: 0,1. Default: all.", show_default=False)
    ] = None,
    runner: Annotated[
        str,
        typer.Option("--runner", help="auto, cpp, python, or an executable. auto: C++, Python where that cannot be built."),
    ] = "auto",
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Also start once with the files not in memory.")] = True,
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
    """Measure ARTIFACT on this machine: load, init, prompt and single-token rates, memory; name the best number of threads.

    With `compare` two profiles are held against each other; exit code 1 if the second is worse. With `calibrate` no artifact is
    run: --out is what `check --profile` predicts any model's speed from.

    Example: mobile-export profile out --out profile.json
    """
    if artifact[0] == COMPARE:
        return _compare(artifact[1:], max_regression, as_json)
    if artifact[0] == CALIBRATE and len(artifact) == 1:
        from mobile_export.cli.calibrate import calibrate

        counts = () if threads == "auto" else _numbers("--threads", threads, least=1)
        return calibrate(counts, runs, _writable("--out", out), as_json=as_json)
    if len(artifact) > 1:
        raise UsageError(f"ARTIFACT {artifact[1]}", "one artifact at a time", "or write: profile compare BEFORE AFTER")
    if weights not in ("plain", "cache", "file"):
        raise UsageError(f"--weights {weights}", "no such way", "write plain, cache or file")
    for option, path in (("--curve", curve), ("--out", out)):
        _writable(option, path)
    if curve is not None and curve.suffix == PNG:
        from mobile_export.measure.curve_png import check_png

        check_png()
    from mobile_export.measure.host import Request, profile_artifact

    request = Request(
        threads=() if threads == "auto" else _numbers("--threads", threads, least=1),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        runs=runs,
        weights=weights,
        runner=runner,
        affinity=() if affinity is None else _numbers("--affinity", affinity, least=0),
        cold=cold,
        operators=ops,
        curve=curve is not None,
        timeout_s=timeout,
    )
    found = profile_artifact(Path(artifact[0]), request, say, warn)
    done()
    _write(found, out, curve)
    typer.echo(json.dumps(dataclasses.asdict(found)) if as_json else _page(found))
    return EXIT_YES


def _write(found: Profile, out: Path | None, curve: Path | None) -> None:
    from mobile_export.measure.curve import curve_svg
    from mobile_export.measure.curve_png import curve_png
    from mobile_export.measure.profile import to_json

    contents = {out: to_json(found).encode()} if out else {}
    if curve and found.curve:
        title = f"{found.artifact}, {_threads(found.best)}, {found.machine.cpu}"
        png = curve.suffix == PNG
        contents[curve] = curve_png(found.curve, title) if png else curve_svg(found.curve, title).encode()
    for path, content in contents.items():
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(content)
        beside.replace(path)


def _writable(option: str, path: Path | None) -> Path | None:
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a folder" if path.is_dir() else "its folder does not exist"
        raise UsageError(f"{option} {path}", what, "name a file")
    return path


def _numbers(option: str, text: str, *, least: int) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) >= least for part in parts):
        raise UsageError(f"{option} {text}", f"not numbers from {least} on", "write them like 1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


# --- pages ---------------------------------------------------------------------------------------------------------------


def _page(found: Profile) -> str:
    machine, counts = found.machine, found.by_threads
    header = ["", *map(_threads, counts)]
    rows: list[tuple[str, Callable[[AtThreads], str]]] = [
        ("load, ms", lambda at: _spread(at.load_s, 1e3, 1)),
        ("init, ms", lambda at: _spread(at.init_s, 1e3, 0)),
        ("first token, ms", lambda at: _spread(at.first_token_s, 1e3, 0)),
        ("prefill, tokens/s", lambda at: _spread(at.prefill_tokens_per_s, 1, 0)),
        ("decode, tokens/s", lambda at: _spread(at.decode_tokens_per_s, 1, 1)),
        ("99 % of tokens within, ms", lambda at: _spread(at.slow_token_s, 1e3, 1)),
        ("dirty after init, MiB", lambda at: f"{at.memory.dirty_after_init_mib:.1f}"),
        ("dirty at the end, MiB", lambda at: f"{at.memory.dirty_at_end_mib:.1f}"),
        ("clean at the end, MiB", lambda at: f"{at.memory.clean_at_end_mib:.1f}"),
        ("peak RSS of the process, MiB", lambda at: f"{at.memory.peak_rss_mib:.1f}"),
    ]
    lines = [
        f"{found.artifact}: {found.runtime}, weights {found.weights}, prompt {found.prompt_tokens}, "
        f"{found.new_tokens} new tokens; median (least to largest) of {found.runs} runs",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_mib:.0f} MiB; {machine.system}",
        "",
        table(header, [[title, *(value(at) for at in counts)] for title, value in rows]),
        "",
    ]
    if found.cold:
        lines.append(
            f"cold start  load {1e3 * found.cold.load_s:.1f} ms, init {1e3 * found.cold.init_s:.0f} ms, "
            f"first token {1e3 * found.cold.first_token_s:.0f} ms"
        )
    if len(counts) > 1:
        lines.append(f"best        {_threads(found.best)}, {found.best.decode_tokens_per_s.median:.1f} tokens/s decode")
    if found.operators:
        lines += ["", _operators(found.operators)]
    return "\n".join(lines).rstrip()


def _threads(at: AtThreads) -> str:
    return counted(at.threads, "thread")


def _operators(operators: Sequence[OperatorTime]) -> str:
    rows = [
        (line.name, "delegate" if line.delegate else "", f"{line.calls}", f"{line.milliseconds:.3f}", f"{100 * line.share:.1f}")
        for line in operators
    ]
    return table(("operator", "", "calls", "ms a token", "%"), rows, left=2)


def _spread(values: Spread, factor: float, digits: int) -> str:
    median, least, largest = (f"{factor * value:,.{digits}f}" for value in (values.median, values.least, values.largest))
    return f"{median} ({least} to {largest})"


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
