"""Runs a runner in a process of its own and reads what it measured. Whatever goes wrong there is one line here.

What an exit code and the output mean is the same on a phone: `read_result` judges them for both.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Sequence

import pydantic

from mobile_export.errors import InputError, MissingTool, UsageError
from mobile_export.measure.measurement import MEASUREMENT, Job, Measurement

MISUSED = 2  # what a runner exits with when it cannot do what its options say
REFUSED = 3  # when the runtime refuses the model
REPORT = "report it with --debug"
OTHERWISE = "name a runner of this version of mobile-export"
LACKS = re.compile(r"Missing operator|operators? missing|[Bb]ackend \S+ is not (available|registered)")  # ExecuTorch's words
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


def launch(command: Sequence[str], job: Job, *, timeout_s: float) -> Measurement:
    """Run a runner once.

    Args:
        command: the runner, without the options of the job.
    Raises:
        UsageError: it cannot be started.
        InputError: the runtime refuses the model.
        MissingTool: it crashed, was killed, hangs, or printed something else than a measurement.
    """
    runner = command[-1]
    # Whatever the runner is, only its own pool may have threads: two pools on the same cores are many times slower.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        process = subprocess.Popen(
            [*command, *job.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that what it started can be ended with it
        )
    except OSError as error:
        raise UsageError(f"--runner {runner}", f"does not start: {error.strerror}", "name an executable file") from None
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        then = "raise --timeout, or ask for fewer tokens"
        raise MissingTool(runner, f"did not finish within {timeout_s:g} s", then) from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()  # not for its output: what left its group may hold the pipes for ever
    return read_result(runner, str(job.model), process.returncode, out, err, then=f"pass --runner python, and {REPORT}")


def read_result(
    runner: str, model: str, code: int, out: bytes, err: bytes, *, then: str = REPORT, otherwise: str = OTHERWISE
) -> Measurement:
    """What a runner that ended measured.

    Args:
        code: its exit code; negative: of the signal that ended it, as subprocess has it.
        then: what to do where it crashed. otherwise: where it printed something else.
    Raises:
        InputError, MissingTool: as `launch`.
    """
    last = (err.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:300]
    if code == REFUSED and LACKS.search(last):
        raise MissingTool(runner, f"cannot run this model: {last}", "name a runner that has it, or export for this one")
    if code == REFUSED:
        raise InputError(model, f"the runtime refuses it: {last}", "export it again, with the same versions")
    if code == MISUSED:
        raise MissingTool(runner, f"does not take its options: {last}", "change them, or name a runner of this version")
    if code in KILLED:
        then = "free some memory, or export with a shorter --max-context"
        raise MissingTool(runner, "was killed, as a system does that runs out of memory", then)
    if code:
        how = f"crashed with {_signal(code)}" if code < 0 else f"exit code {code}"
        raise MissingTool(runner, f"{how}: {last}", then)
    return _read(runner, out, otherwise)


def _read(runner: str, out: bytes, then: str) -> Measurement:
    """The measurement on the last line of what a runner printed."""
    lines = out.decode(errors="replace").strip().splitlines()
    try:
        return MEASUREMENT.validate_json(lines[-1] if lines else "")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = f"{lines[-1][:80]!r}" if lines else "nothing"
        what = f"{place}: {first['msg']}" if place else f"printed {said}, no measurement"
        raise MissingTool(runner, what, then) from None


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:  # a signal without a name
        return f"signal {-code}"
