"""Table: what `profile --adb` costs beside pushing and running, on the emulated phone of the tests.

    PYTHONPATH=tests python -m benchmarks.adb_cost ARTIFACT

Pushing: a file of 100 MB by `adb push`, and as `profile` does it, with progress, in turn. Overhead: a profile whose runner is a
script that prints at once, and whose model is on the phone already, so its time is ours: adb calls, and the host's own run of
the model for its logits. Take a tiny artifact: a large one is hashed on the phone instead of pushed, at 35 MB/s on the emulated
one. The phone is a program on this machine: its times say nothing of a phone's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adb_device.bed import Bed, Phone
from fake_measurement import MEASURED

from benchmarks.machine import describe_machine
from benchmarks.report import add_report_options, at_least, at_most, finish, middle_half, paired_ratios, print_table, spread
from mobile_export.measure.adb.chosen import PATIENCE_S
from mobile_export.measure.adb.phones import Phones, profile_on_phones
from mobile_export.measure.adb.transport import Adb, Device
from mobile_export.measure.request import Request

PUSHED_BYTES = 100_000_000
MAX_OVERHEAD_S, LEAST_SPEED = 3.0, 0.9
PLAIN, OURS, OVERHEAD = "adb push", "profile's push", "profile, all but pushing and running"
RUNS_OF_A_PROFILE = 5


def main() -> int:
    """Push and profile in turn, print the table, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="an artifact folder")
    parser.add_argument("--adb", default=shutil.which("adb"), help="the client; default: the one on the path")
    add_report_options(parser, runs=7)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    times: dict[str, list[float]] = {PLAIN: [], OURS: [], OVERHEAD: []}
    with tempfile.TemporaryDirectory() as room, Bed(Path(room), asked.adb) as bed:
        os.environ.update({**bed.environment, "XDG_CACHE_HOME": str(Path.home() / ".cache")})
        phone = bed.phone()
        file, script = Path(room, "file"), Path(room, "runner.sh")
        file.write_bytes(os.urandom(PUSHED_BYTES))
        script.write_text(f"#!/system/bin/sh\ncat <<'END'\n{json.dumps(MEASURED)}\nEND\n")
        _profile(asked.artifact, asked.adb, phone, script)  # leaves the model there
        for _ in range(asked.runs):
            times[PLAIN].append(_took(lambda: _plain_push(bed, phone, file)))
            times[OURS].append(_took(lambda: _our_push(asked.adb, phone, file)))
            times[OVERHEAD].append(_took(lambda: _profile(asked.artifact, asked.adb, phone, script)))
    shown = f"{PUSHED_BYTES / 1e6:.0f} MB pushed, profiles of {RUNS_OF_A_PROFILE} runs"
    print_table(
        f"adb, {shown}; median (least to largest) of {asked.runs}",
        ("", "seconds"),
        [(name, spread(values, 2)) for name, values in times.items()],
        markdown=asked.markdown,
    )
    ratios = paired_ratios(times[PLAIN], times[OURS])
    low, high = middle_half(ratios)
    figures = [
        at_least(f"speed of our push (middle half {low:.2f} to {high:.2f})", sorted(ratios)[len(ratios) // 2], LEAST_SPEED),
        at_most("overhead", sorted(times[OVERHEAD])[len(times[OVERHEAD]) // 2], MAX_OVERHEAD_S, "s"),
    ]
    return finish(asked, machine, times, figures)


def _took(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _plain_push(bed: Bed, phone: Phone, file: Path) -> None:
    done = bed.adb("-s", phone.serial, "push", file, "/data/local/tmp/")
    assert done.returncode == 0, done.stderr
    (phone.data / file.name).unlink()


def _our_push(adb: str, phone: Phone, file: Path) -> None:
    Device(Adb(Path(adb), PATIENCE_S), phone.serial).push([file], "/data/local/tmp", _nothing)
    (phone.data / file.name).unlink()


def _profile(artifact: Path, adb: str, phone: Phone, script: Path) -> None:
    request = Request(threads=(1,), prompt_tokens=8, new_tokens=1, runs=RUNS_OF_A_PROFILE, runner=str(script), cold=False)
    _, errors = profile_on_phones(artifact, request, Phones((phone.serial,), adb, keep=True), _nothing, _nothing)
    assert not errors, errors


def _nothing(_: str) -> None:
    """What is told is not shown."""


if __name__ == "__main__":
    raise SystemExit(main())
