"""One run of a runner on a phone: started, watched and read in one call."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mobile_export.measure.adb.failures import failure
from mobile_export.measure.adb.folder import PID
from mobile_export.measure.adb.preflight import POWER, THERMAL, thermal_status
from mobile_export.measure.adb.transport import Device
from mobile_export.measure.launch import read_result
from mobile_export.measure.measurement import Job, Measurement

NOT_STARTED = (126, 127)
SIGNALS = 128  # what a shell adds to the number of the signal that ended a program
SAMPLE_S = 0.5


@dataclass(frozen=True)
class Run:
    """What a run measured. thermal: Android's status after it. draw: samples of the battery, where they were asked for."""

    measured: Measurement
    thermal: int | None
    draw: str


def run_once(device: Device, folder: str, command: Sequence[str], job: Job, *, timeout_s: float, sample: bool) -> Run:
    """Run a runner once in its folder.

    Args:
        sample: write down what the battery gives meanwhile.
    Raises:
        InputError: the runtime refuses the model.
        MissingTool: it does not start, crashed, was killed, hangs, or printed something else; the connection broke.
    """
    # The shell tells its number and becomes the runner, in a group of its own where there is setsid, so that cleaning up can
    # end it with all it started. OMP: one pool of threads, as on the host.
    line = shlex.join([*command, *job.arguments()])
    started = f"""$(command -v setsid) sh -c 'echo $$ >{PID};exec "$@"' sh {line} >out 2>err </dev/null"""
    watching = f"while [ -e {PID} ];do cat {POWER}/current_now {POWER}/voltage_now;sleep {SAMPLE_S};done >draw 2>/dev/null &"
    answers = device.ask(
        "running the model",
        {
            "run": f"cd {folder}&&rm -f draw&&chmod 755 {command[0]}&&:>{PID}&&export OMP_NUM_THREADS=1||exit 1\n"
            f"{watching if sample else ''}\n{started}\nr=$?;rm -f {PID};exit $r",
            "out": f"cat {folder}/out",
            "err": f"tail -c 2000 {folder}/err",
            "thermal": THERMAL,
            "draw": f"cat {folder}/draw" if sample else "true",
        },
        timeout_s=timeout_s,
        then="raise --timeout, or ask for fewer tokens",
    )
    code, said = answers["run"].code, (answers["run" if answers["err"].code else "err"].text).strip()
    if code in NOT_STARTED or answers["out"].code:
        raise failure(device.name, "starting the runner", said)
    result = read_result(
        f"{device.name}: {command[-1]}",
        f"{device.name}: {job.model.name}",
        SIGNALS - code if code > SIGNALS else code,
        answers["out"].text.encode(),
        said.encode(),
    )
    return Run(result, thermal_status(answers["thermal"].text), answers["draw"].text if sample else "")
