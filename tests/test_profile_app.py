"""`profile --adb --runner app` against the emulated phone: the Kotlin core on the JVM stands for the app, or a shell script.

The core's own benchmark runs, with ExecuTorch's Python runtime where a phone has its Java one. Whether Android starts the
activity, and what it measures there, nobody knows from this.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adb_device.app import App
from adb_device.bed import Bed
from adb_device.bed import Phone as BedPhone
from adb_device.faults import Faults
from adb_device.needs import needs_bed
from android_tools import benchmark_command, needs_kotlin
from carried import carried_artifact
from fake_measurement import MEASURED

from mobile_export.cli import run
from mobile_export.measure.adb.app import APP, RUNS
from mobile_export.measure.profile import read_profile

pytestmark = needs_bed

IN_APP = ("--adb", "--runner", "app")
HANGS = "sleep 77; :"  # a shell becomes the last program of a line, and so loses its name
QUICK = ("--prompt-tokens", "10", "--new-tokens", "8", "--runs", "1", "--threads", "1", "--rest", "0")


@pytest.fixture
def folder(tmp_path) -> Path:
    """What is no program: an app that is a script does not open it."""
    return carried_artifact(tmp_path / "artifact")


@pytest.fixture
def bed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setenv("ADB", "adb")
    with Bed(tmp_path, "adb") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def app_that(phone: BedPhone, does: str) -> App:
    """An app that is a shell script; $files is its folder, $run the name of the run, and it may call `write TEXT`."""
    write = 'write() { mkdir -p "$files/runs"; printf %s "$1" >"$files/x"; mv "$files/x" "$files/runs/$run.json"; }'
    return phone.install(APP, lambda files: ["sh", "-c", f"files=$0; run=$3; {write}; {does}", str(files)])


def writes(**changes: object) -> str:
    return f"write '{json.dumps({**MEASURED, **changes})}'"


def assert_nothing_left(phone: BedPhone) -> None:
    until = time.monotonic() + 5
    while phone.processes() and time.monotonic() < until:
        time.sleep(0.05)
    assert phone.processes() == {}
    assert list(phone.data.rglob("*")) == []
    assert not (phone.root / RUNS[1:]).exists()
    assert phone.state("fixed_performance") in (None, "false")


# --- what is measured ----------------------------------------------------------------------------------------------------


@needs_kotlin
def test_the_kotlin_core_measures_on_a_phone_what_the_model_computes_here(bed, tmp_path, capsys):
    from exported import artifact, checkpoint  # torch

    folder, phone = artifact(checkpoint()), bed.phone()
    app = phone.install(APP, benchmark_command)
    out = tmp_path / "p.json"
    capsys.readouterr()  # of the export
    assert run(["profile", str(folder), *QUICK, *IN_APP, "--out", str(out)]) == 0
    found = read_profile(out)
    assert found.agreement is not None
    assert found.agreement.same_argmax
    assert found.agreement.difference < 1e-5  # float32 summed in another order
    assert found.runtime.endswith(", Python, for a phone")
    assert (found.best.threads, found.cold, found.conditions.cores) == (1, None, [])  # type: ignore[union-attr]
    assert found.phone is not None
    assert found.phone.model == "Google Pixel 8"
    assert found.best.memory.dirty_at_end_mib > 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "Google Pixel 8" in said.out
    assert len(app.started) == 3  # logits, warming up, the run
    assert_nothing_left(phone)


def test_the_job_reaches_the_app_which_may_read_the_model(bed, folder):
    phone = bed.phone()
    (folder / "model.pte").chmod(0o600)
    app = app_that(phone, f'[ -r "$6" ] || exit 1; {writes()}')
    assert run(["profile", str(folder), *QUICK, *IN_APP, "--no-fixed-clocks"]) == 0
    compared, warm_up, measured = (dict(zip(extras[1::3], extras[2::3], strict=True)) for extras in app.started)
    assert {extras[0::3] == ["--es"] * (len(extras) // 3) for extras in app.started} == {True}
    names = [each.pop("run") for each in (compared, warm_up, measured)]
    assert len(set(names)) == 3
    assert warm_up == measured
    assert measured.pop("model").startswith("/data/local/tmp/mobile-export/")
    counts = {"threads": "1", "prompt-tokens": "10", "new-tokens": "8", "sequences": "1", "warm-up": "1"}
    assert measured == {**counts, "logits-of": "3,4,5,6,7,8,9,10", "logits-values": "8"}
    assert (compared["sequences"], compared["logits-values"]) == ("0", str(1 << 20))
    assert phone.state("key") == "KEYCODE_WAKEUP"
    assert_nothing_left(phone)


def test_energy_is_sampled_while_the_app_runs(bed, folder, capsys):
    phone = bed.phone()
    system = phone.root / "sys/class/power_supply/battery"
    for path in (system.parents[1], system.parent, system):
        path.chmod(0o755)
    for name, value in (("current_now", "-500000"), ("voltage_now", "4000000")):
        (system / name).unlink()
        (system / name).write_text(f"{value}\n")
        (system / name).chmod(0o444)
    app_that(phone, f"sleep 1; {writes()}")
    assert run(["profile", str(folder), *QUICK, *IN_APP]) == 0
    assert ", 2.00 W while running" in capsys.readouterr().out


# --- what goes wrong -----------------------------------------------------------------------------------------------------


def error(kind: str, what: str) -> str:
    return "write '" + json.dumps({"error": {"kind": kind, "what": what}}) + "'"


WHERE = f"{APP}: "
KILLED = (
    f"{WHERE}ended without a result: it was killed, as a system does that runs out of memory, or crashed; free some memory, "
)
OTHER_VERSION = "install the app of this version of mobile-export"
APPS: dict[str, tuple[str, int, str]] = {
    "refuses the model": (
        error("refused", "bad program"),
        3,
        "model.pte: the runtime refuses it: bad program; export it again",
    ),
    "lacks a backend": (
        error("refused", "Backend XnnpackBackend is not available"),
        4,
        f"{WHERE}cannot run this model: Backend",
    ),
    "does not do that": (error("usage", "threads: 1 alone"), 4, f"{WHERE}does not take its options: threads: 1 alone; "),
    "has no memory": (error("memory", "out of memory: 3 GB"), 4, f"{WHERE}out of memory: 3 GB; free some memory, "),
    "fails": (error("crash", "NullPointerException: x"), 4, f"{WHERE}failed: NullPointerException: x; report it"),
    "speaks of another kind": (error("odd", "x"), 4, f"{WHERE}"),
    "writes rubbish": ("write hello", 4, f"{WHERE}printed 'hello', no measurement; {OTHER_VERSION}"),
    "writes nothing": ("write ''", 4, f"{WHERE}printed nothing, no measurement; {OTHER_VERSION}"),
    "writes half": ('write \'{"runtime": "x"}\'', 4, f"{WHERE}threads: Field required; {OTHER_VERSION}"),
    "ends at once": ("exit 0", 4, KILLED),
    "is killed": ("sleep 1; kill -9 $$", 4, KILLED),
}


@pytest.mark.parametrize("kind", APPS)
def test_an_app_that(bed, fails, folder, kind):
    does, expected, line = APPS[kind]
    phone = bed.phone()
    app_that(phone, does)
    code, said = fails("profile", folder, *QUICK, *IN_APP)
    assert said.startswith(f"{phone.serial} (Google Pixel 8): {line}")
    assert code == expected
    assert_nothing_left(phone)


def test_an_app_that_hangs_is_stopped(bed, fails, folder):
    phone = bed.phone()
    app_that(phone, HANGS)
    code, said = fails("profile", folder, *QUICK, *IN_APP, "--timeout", "8")
    then = "raise --timeout, or ask for fewer tokens"
    line = f"{phone.serial} (Google Pixel 8): did not finish within 8 s (running the app); {then}"
    assert (code, said) == (4, line)
    assert_nothing_left(phone)


def test_a_phone_without_the_app(bed, fails, folder):
    phone = bed.phone()
    code, said = fails("profile", folder, *QUICK, *IN_APP)
    then = "build and install it as android_demo/README.md says"
    assert (code, said) == (4, f"{phone.serial} (Google Pixel 8): has no {APP}; {then}")
    assert "sync:" not in phone.requests


def test_an_app_that_is_removed_meanwhile_does_not_start(bed, folder, capsys):
    phone = bed.phone()
    app_that(phone, f"rm -rf {phone.root}/data/misc/states/apps/{APP}; {writes()}")
    assert run(["profile", str(folder), *QUICK, *IN_APP]) == 4
    what = f"Error: Activity class {{{APP}/.BenchmarkActivity}} does not exist."
    then = "build and install it as android_demo/README.md says"
    line = f"error: {phone.serial} (Google Pixel 8): {APP}: does not start: {what}; {then}"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert_nothing_left(phone)


FAULTS: dict[str, tuple[Faults, str]] = {
    "cut": (Faults(cut_shell="am start"), "the connection was cut (running the app); check the cable"),
    "rubbish": (Faults(rubbish_shell="am start"), "answered '"),
    "killed": (Faults(killed=f"{APP} "), KILLED),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_phone_that_is(bed, fails, folder, kind):
    faults, line = FAULTS[kind]
    phone = bed.phone(faults=faults)
    app_that(phone, f"sleep 2; {writes()}")
    code, said = fails("profile", folder, *QUICK, *IN_APP)
    assert said.startswith(f"{phone.serial} (Google Pixel 8): {line}")
    assert code == 4
    assert_nothing_left(phone)


@pytest.mark.parametrize("faults", [Faults(no_shell_v2=True), Faults(missing_tools=("pidof", "input"))])
def test_a_phone_is_measured_all_the_same(bed, folder, faults):
    phone = bed.phone(faults=faults)
    app_that(phone, writes())
    assert run(["profile", str(folder), *QUICK, *IN_APP]) == 0
    assert_nothing_left(phone)


ASKED: dict[str, tuple[tuple[str, ...], str]] = {
    "cores": (("--cores", "big"), "--cores: an app does not choose its cores"),
    "a packed file": (("--weights", "file"), "--weights file: the app packs weights at load"),
    "a trace": (("--ops",), "--ops: the app writes no trace"),
    "a cold start": (("--cold",), "--cold: an app cannot have files dropped from memory"),
}


@pytest.mark.parametrize("kind", ASKED)
def test_what_an_app_cannot_do_is_refused_before_anything_is_pushed(bed, fails, folder, kind):
    options, line = ASKED[kind]
    phone = bed.phone()
    app_that(phone, writes())
    said = fails("profile", folder, *QUICK, *IN_APP, *options)
    assert said == (2, f"{line}; leave it out, or write --runner bundle")
    assert "sync:" not in phone.requests


def test_an_app_runs_pte_files_on_phones(bed, fails, folder, tmp_path):
    bed.phone()
    made = carried_artifact(tmp_path / "onnx", manifest="onnx")
    line = "--runner app: the demo app runs .pte files, this is onnx; name another runner"
    assert fails("profile", made, *QUICK, *IN_APP) == (2, line)
    assert fails("profile", folder, "--runner", "app") == (2, "--runner app: is for phones; add --adb, or write cpp")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_the_app(bed, folder, sent):
    phone = bed.phone()
    app_that(phone, HANGS)
    command = ["env", "--default-signal=INT", sys.executable, "-m", "mobile_export", "profile", str(folder), *QUICK, *IN_APP]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not any(line.startswith(APP) for line in phone.processes().values()):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.communicate(timeout=60) == ("", "error: interrupted; nothing was written\n")
    assert process.returncode == 130
    assert_nothing_left(phone)
