"""`--runner app`: the demo app measures itself. A run is started by an intent, waited for, read from a file, and stopped.

Options of a run are the intent's extras, under the names of `Job.arguments`. What the app writes is a measurement, or
{"error": {"kind": "usage" | "refused" | "memory" | "crash", "what": ...}}.
"""

from __future__ import annotations

import json
import secrets
from shlex import quote
from typing import Literal

import pydantic

from mobile_export.errors import MissingTool, UsageError
from mobile_export.manifest import Manifest
from mobile_export.measure.adb.folder import ROOT
from mobile_export.measure.adb.preflight import POWER, THERMAL, thermal_status
from mobile_export.measure.adb.runs import SAMPLE_S, Run
from mobile_export.measure.adb.transport import Device
from mobile_export.measure.launch import MISUSED, REFUSED, REPORT, read_result
from mobile_export.measure.measurement import STRICT, Job
from mobile_export.measure.request import Request

APP = "org.mobileexport.demo"
ACTIVITY = f"{APP}/.BenchmarkActivity"
RUNS = f"/sdcard/Android/data/{APP}/files/runs"
STOP = f"am force-stop {APP}"
INSTALL = "build and install it as android_demo/README.md says"
OTHER = "install the app of this version of mobile-export"
SMALLER = "free some memory, or export with a shorter --max-context"
NOT_FOUND = 1  # pidof's exit code; a phone without pidof has another
CODES = {"usage": MISUSED, "refused": REFUSED}  # of a runner that is told the same


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class AppError:
    """What the app says of a run that failed."""

    kind: Literal["usage", "refused", "memory", "crash"]
    what: str


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class _Failed:
    error: AppError


_FAILED = pydantic.TypeAdapter(_Failed)


def check_app_request(request: Request, manifest: Manifest) -> None:
    """Hold a request against what an app can do.

    Raises:
        UsageError: it cannot.
    """
    if manifest.pte is None:
        raise UsageError("--runner app", f"the demo app runs .pte files, this is {manifest.format}", "name another runner")
    then = "leave it out, or write --runner bundle"
    for option, is_asked, what in (
        ("--cores", request.cores != "all", "an app does not choose its cores"),
        (f"--weights {request.weights}", request.weights != "plain", "the app packs weights at load"),
        ("--ops", request.operators, "the app writes no trace"),
        ("--cold", request.cold, "an app cannot have files dropped from memory"),
    ):
        if is_asked:
            raise UsageError(option, what, then)


def check_installed(device: Device) -> None:
    """Raises:
    MissingTool: the phone does not have the app.
    """
    answer = device.ask("looking for the demo app", {"path": f"pm path {APP}"}, timeout_s=device.adb.patience_s)["path"]
    if answer.code or not answer.text.startswith("package:"):
        raise MissingTool(device.name, f"has no {APP}", INSTALL)


def run_in_app(device: Device, folder: str, job: Job, *, timeout_s: float, sample: bool) -> Run:
    """Have the app run a job once, in a process of its own.

    Args:
        folder: of the model; the app may read there after this.
        sample: write down what the battery gives meanwhile.
    Raises:
        InputError: the runtime refuses the model.
        MissingTool: the app does not start, ended without a word, hangs, or wrote something else; the connection broke.
    """
    run = secrets.token_hex(8)
    result = f"{RUNS}/{run}.json"
    options = job.arguments()
    pairs = zip(options[::2], options[1::2], strict=True)
    extras = " ".join(f"--es {name.removeprefix('--')} {quote(value)}" for name, value in pairs)
    draw = f"cat {POWER}/current_now {POWER}/voltage_now;" if sample else ""
    ended = f"{{ pidof {APP} >&2;[ $? = {NOT_FOUND} ];}}"
    answers = device.ask(
        "running the app",
        {
            # The app reads as somebody else; adb has pushed the model readable by all. The screen has to be on, or the app is
            # one in the background, on the slow cores.
            "start": f"{STOP};chmod 755 {ROOT} {folder};input keyevent KEYCODE_WAKEUP;"
            f"am start -W -n {ACTIVITY} --es run {run} {extras}",
            # What it wrote before it ended is there, if anything, when it is no longer found.
            "wait": f"exec 2>/dev/null;while [ ! -e {result} ];do if {ended};then break;fi;{draw}sleep {SAMPLE_S};done",
            "out": f"cat {result}",
            "thermal": THERMAL,
            "stop": f"{STOP};rm -f {result} {result}.part",
        },
        timeout_s=timeout_s,
        then="raise --timeout, or ask for fewer tokens",
    )
    said = answers["start"].text
    where = f"{device.name}: {APP}"
    if answers["out"].code:
        errors = [line.strip() for line in said.splitlines() if line.startswith(("Error", "Exception", "java."))]
        if errors:
            raise MissingTool(where, f"does not start: {errors[-1]}", INSTALL)
        what = "ended without a result: it was killed, as a system does that runs out of memory, or crashed"
        raise MissingTool(where, what, f"{SMALLER}; adb logcat says more")
    model = f"{device.name}: {job.model.name}"
    text = answers["out"].text
    error = _error_in(text)
    if error is None:
        measured = read_result(where, model, 0, text.encode(), b"", otherwise=OTHER)
    elif error.kind == "memory":
        raise MissingTool(where, error.what, SMALLER)
    elif error.kind == "crash":
        raise MissingTool(where, f"failed: {error.what}", REPORT)
    else:
        measured = read_result(where, model, CODES[error.kind], b"", error.what.encode())
    return Run(measured, thermal_status(answers["thermal"].text), answers["wait"].text if sample else "")


def _error_in(text: str) -> AppError | None:
    """What the app says went wrong; None where it says something else."""
    try:
        return _FAILED.validate_python(json.loads(text)).error
    except (ValueError, RecursionError):  # pydantic's and json's errors are ValueErrors
        return None
