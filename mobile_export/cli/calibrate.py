"""`mobile-export profile calibrate`: what this machine streams and computes, for `check --profile` to predict speed from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mobile_export.cli.files import put
from mobile_export.cli.say import done, say, table
from mobile_export.errors import EXIT_YES
from mobile_export.units import counted

if TYPE_CHECKING:
    from mobile_export.measure.machine_speed import MachineSpeed


def calibrate(threads: Sequence[int], runs: int, out: Path | None, *, as_json: bool) -> int:
    """Measure at each number of threads, and keep the one a block of weights takes least time at.

    Args:
        threads: to try; none: 1, 2, 4 and so on up to all cores.
        runs: processes for each of them.
        out: a file for the object that `check --profile` reads.
    """
    from mobile_export.measure.build import build_runner
    from mobile_export.measure.host import this_machine
    from mobile_export.measure.machine_speed import measure_speed

    say("building the runner, once")
    runner, machine = build_runner(), this_machine()
    speeds = []
    for count in threads or _up_to(machine.cores):
        say(f"measuring {counted(count, 'thread')}")
        speeds.append(measure_speed(runner, count, processes=runs))
    done()
    best = min(speeds, key=lambda speed: speed.block_4_bit_us)
    values: dict[str, Any] = {
        "machine": dataclasses.asdict(machine),
        "best_threads": best.threads,
        "calibration": best.calibration(),
        "measured": [dataclasses.asdict(speed) for speed in speeds],
    }
    if out is not None:
        put(out, (json.dumps(values, indent=2) + "\n").encode())
    typer.echo(json.dumps(values) if as_json else _page(speeds, best))
    return EXIT_YES


def _page(speeds: Sequence[MachineSpeed], best: MachineSpeed) -> str:
    columns = [speed.calibration() for speed in speeds]
    rows = [(name, *(f"{column[name]:.1f}" for column in columns)) for name in columns[0]]
    header = ("", *(counted(speed.threads, "thread") for speed in speeds))
    return f"{best.runtime}\n\n{table(header, rows)}\n\nbest  {counted(best.threads, 'thread')}"


def _up_to(cores: int) -> list[int]:
    """Numbers of threads to try.

    >>> _up_to(1), _up_to(6)
    ([1], [1, 2, 4, 6])
    """
    return [*(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]
