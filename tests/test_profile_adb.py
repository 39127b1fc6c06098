"""`profile --adb` with the real adb client against phones of tests/adb_device: what is measured, and every fault of a phone.

A shell script stands for the runner where only the way to it matters; tests/test_bundle.py runs the real one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adb_device.bed import Bed
from adb_device.bed import Phone as BedPhone
from adb_device.faults import Faults
from adb_device.fuzz import KINDS, LEVELS, Fuzz
from adb_device.needs import bundled_adb, needs_bed
from arm64 import needs_arm64, runner_bundle
from exported import artifact, checkpoint
from fake_measurement import MEASURED

from mobile_export.cli import run
from mobile_export.measure.adb.runner import EXPERIMENTAL
from mobile_export.measure.profile import Profile, read_profile

pytestmark = needs_bed

SEEDS = range(int(os.environ.get("MOBILE_EXPORT_FUZZ_SEEDS", "1")))
QUICK = ("--prompt-tokens", "10", "--new-tokens", "8", "--runs", "1", "--threads", "1", "--no-cold", "--rest", "0")
NO_LOGITS = "the runner tells no logits, so nobody knows whether it computes the model"


@pytest.fixture(scope="module")
def folder() -> Path:
    return artifact(checkpoint())


@pytest.fixture
def client() -> str:
    """The adb that is called; tests name another."""
    return "adb"


@pytest.fixture
def bed(tmp_path, monkeypatch, client):
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setenv("ADB", client)
    with Bed(tmp_path, client) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def script(folder: Path, before: str = "", **changes: object) -> Path:
    """A runner that is a shell script: it does something, and prints a measurement."""
    path = folder / "runner.sh"
    line = json.dumps({**MEASURED, **changes})
    path.write_text(f"#!/system/bin/sh\n{before}\ncat <<'END'\n{line}\nEND\n")
    return path


def ended(phone: BedPhone) -> dict[int, str]:
    """What still runs on a phone after some time to end."""
    until = time.monotonic() + 5
    while phone.processes() and time.monotonic() < until:
        time.sleep(0.05)
    return phone.processes()


def assert_nothing_left(phone: BedPhone) -> None:
    assert list(phone.data.rglob("*")) == []
    assert ended(phone) == {}
    assert phone.state("fixed_performance") in (None, "false")


def profiled(tmp_path: Path, folder: Path, *options: object) -> Profile:
    out = tmp_path / "p.json"
    assert run(["profile", str(folder), *QUICK, "--out", str(out), *map(str, options)]) == 0
    return read_profile(out)


# --- what is measured ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixture", "told"),
    [
        ("pixel8", ("Google Pixel 8", "14", 34, "Google Tensor G3", 9, [4, 5, 6, 7, 8], True, 0)),
        ("galaxy-a54", ("samsung SM-A546B", "14", 34, "Samsung s5e8835", 8, [4, 5, 6, 7], False, 0)),
        ("nexus5x", ("LGE Nexus 5X", "6.0.1", 23, "msm8992", 6, [4, 5], False, None)),
    ],
)
def test_a_profile_of_a_phone(bed, folder, tmp_path, capsys, fixture, told):
    phone = bed.phone(fixture)
    found = profiled(tmp_path, folder, "--adb", "--runner", script(tmp_path), "--cores", "big")
    assert found.phone is not None
    assert found.conditions is not None
    model, android, sdk, soc, cores, big, fixed, thermal = told
    assert (found.phone.serial, found.phone.model, found.phone.android) == (phone.serial, model, android)
    assert (found.phone.sdk, found.phone.soc, len(found.phone.cores)) == (sdk, soc, cores)
    assert (found.conditions.cores, found.conditions.fixed_clocks) == (big, fixed)
    assert found.conditions.thermal_before == found.conditions.thermal_after == thermal
    assert found.machine.memory_mib == found.phone.dram_mib
    assert found.best.decode_tokens_per_s.median == pytest.approx(200)
    assert found.best.memory.dirty_after_init_mib == 10
    assert json.loads((folder / "manifest.json").read_text())["files"] == [dataclasses.asdict(file) for file in found.files]
    page, said = capsys.readouterr()
    assert f"{model}, {soc}, {cores} cores, {found.phone.dram_mib:.0f} MiB; Android {android}" in page
    assert (
        said
        == f"warning: {phone.serial} ({model}): the runner tells no logits, so nobody knows whether it computes the model\n"
    )
    assert_nothing_left(phone)


def renamed(folder: Path, to: Path, name: str) -> Path:
    """An artifact whose program has another name."""
    held = json.loads((folder / "manifest.json").read_text())
    held["files"][0]["name"] = name
    to.mkdir()
    (to / "manifest.json").write_text(json.dumps(held))
    (to / name).write_bytes((folder / "model.pte").read_bytes())
    return to


def test_the_job_reaches_the_runner(bed, folder, tmp_path):
    """Arguments as on the host, paths of the phone, whose shell reads no name of a file."""
    phone = bed.phone()
    name = 'it\'s $(reboot) & "x"; .pte'
    odd = renamed(folder, tmp_path / 'a "b"; c', name)
    runner = script(odd, 'echo "$OMP_NUM_THREADS|$PWD|$*" >>/data/local/tmp/log')
    profiled(tmp_path, odd, "--adb", phone.serial, "--runner", runner, "--cold", "--weights", "file", "--cores", "0,2")
    lines = [line.split("|") for line in (phone.data / "log").read_text().splitlines()]
    (phone.data / "log").unlink()
    there = lines[0][1]
    assert there.startswith("/data/local/tmp/mobile-export/")
    assert {(threads, place) for threads, place, _ in lines} == {("1", there)}
    compared, warm_up, cold, measured = (line[2] for line in lines)
    tail = f"--affinity 0,2 --packed-weights {there}/packed.xnnpack --logits-of 3,4,5,6,7,8,9,10 --logits-values 8"
    prompt = f"--model {there}/{name} --threads 1 --prompt-tokens 10 --new-tokens 8"
    assert compared.endswith("--sequences 0 --warm-up 0 --logits-of 3,4,5,6,7,8,9,10 --logits-values 1048576")
    assert warm_up == measured == f"{prompt} --sequences 1 --warm-up 1 {tail}"
    assert cold == f"{prompt} --sequences 0 --warm-up 0 {tail} --drop {there}/{name} --drop {there}/packed.xnnpack"
    assert_nothing_left(phone)


def test_a_manifest_that_leads_out_of_its_folder(bed, fails, folder, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model.pte").write_bytes((folder / "model.pte").read_bytes())
    out = renamed(folder, tmp_path / "out", "../x/model.pte")
    code, said = fails("profile", out, *QUICK, "--adb", "--runner", script(tmp_path))
    assert (code, said.split(";")[0]) == (3, f"{out}: ../x/model.pte: lies in another folder than the manifest")


def logits(*values: float) -> dict[str, object]:
    return {"tokens": [3], "count": 97, "argmax": 0, "sum": 1.0, "values": list(values)}


def test_logits_of_a_wrong_kernel_are_warned_of(bed, folder, tmp_path, capsys):
    bed.phone()
    wrong = profiled(tmp_path, folder, "--adb", "--runner", script(tmp_path, logits=logits(*[100.0] * 97)))
    page, said = capsys.readouterr()
    assert wrong.agreement is not None
    assert not wrong.agreement.agrees
    assert "of the largest, 20 % are explained by rounding: a kernel there may be wrong\n" in said
    assert "logits      WRONG: " in page


def test_what_is_kept_is_not_pushed_again(bed, folder, tmp_path):
    phone = bed.phone()
    options = ("--adb", phone.serial, "--runner", script(tmp_path))

    def pushes() -> int:
        before = phone.requests.count("sync:")
        profiled(tmp_path, folder, *options, "--keep")
        return phone.requests.count("sync:") - before

    assert pushes() == 1
    (kept,) = (phone.data / "mobile-export").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["model.pte", "runner"]
    assert phone.state("fixed_performance") == "false"
    assert pushes() == 0
    (kept / "model.pte").write_bytes(b"another")
    assert pushes() == 1
    assert (kept / "model.pte").read_bytes() == (folder / "model.pte").read_bytes()
    profiled(tmp_path, folder, *options)
    assert_nothing_left(phone)


def test_fixed_clocks_are_on_while_it_runs_and_off_when_asked(bed, folder, tmp_path):
    phone = bed.phone()
    state = phone.data.parents[1] / "misc/states/fixed_performance"
    seen = script(tmp_path, "cat /data/misc/states/fixed_performance >>/data/local/tmp/seen")
    profiled(tmp_path, folder, "--adb", "--runner", seen)
    assert set((phone.data / "seen").read_text().split()) == {"true"}
    assert state.read_text().strip() == "false"
    (phone.data / "seen").unlink()
    found = profiled(tmp_path, folder, "--adb", "--runner", seen, "--no-fixed-clocks")
    assert set((phone.data / "seen").read_text().split()) == {"false"}
    assert found.conditions is not None
    assert not found.conditions.fixed_clocks


def test_clocks_that_somebody_else_fixed_stay_so(bed, folder, tmp_path):
    phone = bed.phone()
    state = phone.data.parents[1] / "misc/states/fixed_performance"
    state.write_text("true\n")
    profiled(tmp_path, folder, "--adb", "--runner", script(tmp_path), "--no-fixed-clocks")
    assert state.read_text() == "true\n"


def test_several_phones_at_once_in_one_table(bed, folder, tmp_path, capsys):
    words = {bed.phone("pixel8"): ["Google", "Pixel", "8"], bed.phone("galaxy-a54"): ["samsung", "SM-A546B"]}
    phones = sorted(words, key=lambda phone: phone.serial)
    broken = bed.phone("pixel8", Faults(not_writable=True))
    out = tmp_path / "p.json"
    arguments = ["profile", str(folder), *QUICK, "--runner", str(script(tmp_path)), "--out", str(out)]
    assert run([*arguments, "--adb", "all"]) == 4
    page, said = capsys.readouterr()
    assert page.splitlines()[2].split() == [word for phone in phones for word in words[phone]]
    assert "decode, tokens/s" in page
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {broken.serial} (Google Pixel 8): does not let us write to /data/local/tmp: ")
    for phone in phones:
        found = read_profile(tmp_path / f"p-{phone.serial.replace(':', '_')}.json")
        assert found.phone is not None
        assert found.phone.serial == phone.serial
        assert_nothing_left(phone)
    assert not out.exists()
    assert run([*arguments, "--adb", ",".join(phone.serial for phone in phones), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [each["phone"]["serial"] for each in values["profiles"]] == [phone.serial for phone in phones]
    assert values["errors"] == []


def test_which_phone_where_there_are_several(bed, fails, folder, tmp_path, monkeypatch):
    def failed(*options: str) -> tuple[int, str]:
        return fails("profile", folder, *QUICK, "--runner", script(tmp_path), "--adb", *options)

    assert failed() == (4, "--adb: no phone is connected; plug one in with USB debugging on, or: adb connect HOST:PORT")
    assert failed("R58M123ABC")[1].startswith("R58M123ABC: is not connected (looking for phones); ")
    first, second = bed.phone(), bed.phone("galaxy-a54", connect=False)
    found = profiled(tmp_path, folder, "--runner", script(tmp_path), "--adb", second.serial)  # connects by itself
    assert found.phone is not None
    assert found.phone.serial == second.serial
    both = ", ".join(sorted([first.serial, second.serial]))
    assert failed() == (4, f"--adb: 2 phones are connected; name one of {both}, or write --adb all")
    monkeypatch.setenv("ANDROID_SERIAL", first.serial)
    found = profiled(tmp_path, folder, "--runner", script(tmp_path), "--adb")
    assert found.phone is not None
    assert found.phone.serial == first.serial


# --- the real runner -----------------------------------------------------------------------------------------------------

MODELS = {
    "base": lambda: artifact(checkpoint()),
    "layer-shared": lambda: artifact(checkpoint("mobilellm", layer_sharing=True, form="bin")),
}


@needs_arm64
@pytest.mark.parametrize("kind", MODELS)
def test_the_bundled_runner_computes_on_a_phone_what_it_does_here(bed, tmp_path, capsys, kind):
    """arm64 under qemu: what is computed is compared, what it takes is not."""
    runner_bundle()  # or the test is skipped
    model, phone = MODELS[kind](), bed.phone()
    assert json.loads((model / "manifest.json").read_text())["pte"]["attention"] == "custom"
    here = profiled(tmp_path, model)
    options = ("--ops", "--weights", "file", "--threads", "2") if kind == "base" else ()
    found = profiled(tmp_path, model, "--adb", *options)
    assert EXPERIMENTAL in capsys.readouterr().err
    assert found.agreement is not None
    assert found.agreement.same_argmax
    assert found.agreement.difference < 1e-5  # float32 summed in another order
    assert found.logits is not None
    assert here.logits is not None
    assert found.logits.values == pytest.approx(here.logits.values, abs=1e-5 * max(map(abs, here.logits.values)))
    assert re.fullmatch(r"executorch [\d.]+, C\+\+", found.runtime)
    if options:
        assert found.operators is not None
        assert any(line.name == "llama::custom_sdpa" for line in found.operators)
        assert found.weights == "packed file"
    assert_nothing_left(phone)


# --- what goes wrong -----------------------------------------------------------------------------------------------------

FAULTS = {
    "unauthorized": (Faults(unauthorized=True), "it has not allowed this computer (looking for phones); unlock it"),
    "disk full": (Faults(disk_full_after=5000), "has no room left for what is to be pushed (pushing to "),
    "no room": (Faults(free_kib=60_000), "has 59 MiB of room, 64 are needed; free some"),
    "cut while pushing": (Faults(cut_push_after=5000), "the connection was cut (pushing to "),
    "hangs while pushing": (Faults(hang_push_after=5000), "took nothing for 5 s (pushing to "),
    "cut while running": (Faults(cut_shell="--model"), "the connection was cut (running the model); check the cable"),
    "hangs while asked": (Faults(hang_shell="getprop"), "did not finish within 5 s (asking what phone it is); run it again"),
    "hangs while running": (Faults(hang_shell="--model"), "did not finish within 5 s (running the model); raise --timeout"),
    "rubbish": (Faults(rubbish_shell="--model"), "answered '"),
    "rubbish from the start": (Faults(rubbish_shell=""), "answered '"),
    "killed": (Faults(killed="--model"), "./runner: was killed, as a system does that runs out of memory; free some memory"),
    "not writable": (Faults(not_writable=True), "does not let us write to /data/local/tmp: "),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_phone_that_is(bed, fails, folder, tmp_path, kind):
    faults, line = FAULTS[kind]
    phone = bed.phone(faults=faults)
    began = time.monotonic()
    runner = script(tmp_path, "sleep 1" if "running" in kind or kind == "killed" else "")
    short = ("--timeout", "5") if "hangs" in kind else ()
    code, said = fails("profile", folder, *QUICK, "--runner", runner, "--adb", phone.serial, *short)
    assert time.monotonic() - began < 90
    assert code == 4
    where, what = said.split(": ", 1)
    assert where in (phone.serial, f"{phone.serial} (Google Pixel 8)")
    assert what.startswith(line)
    assert_nothing_left(phone)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_that_answers_what_none_should_never_hangs_or_crashes_the_tool(bed, folder, tmp_path, capsys, level, kind):
    for seed in SEEDS:
        phone = bed.phone(faults=Faults(fuzz=Fuzz(level, kind, seed=seed, share=0.1, unharmed=seed % 7)), connect=False)
        began = time.monotonic()
        code = run(["profile", str(folder), *QUICK, "--runner", str(script(tmp_path)), "--adb", phone.serial, "--timeout", "2"])
        said = capsys.readouterr().err.splitlines()
        assert time.monotonic() - began < 60
        assert code in (0, 4), said
        assert [line for line in said if not line.startswith(("error: ", "warning: "))] == []
        assert sum(line.startswith("error: ") for line in said) == (1 if code else 0)


HARMLESS = {
    "cut once while pushing": Faults(cut_push_after=5000, times=1),
    "without shell v2": Faults(no_shell_v2=True),
    "without sha256sum, setsid and pkill": Faults(missing_tools=("sha256sum", "setsid", "pkill")),
    "without services": Faults(missing_services=("thermalservice", "battery")),
    "denying what it is": Faults(denied=("thermalservice", "battery", "/proc/meminfo")),
    "jumping in time": Faults(clock_jump=-40_000_000),
    "slow": Faults(slow_link=100_000),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_phone_is_measured_all_the_same(bed, folder, tmp_path, kind):
    phone = bed.phone(faults=HARMLESS[kind])
    found = profiled(tmp_path, folder, "--adb", "--runner", script(tmp_path))
    assert found.best.decode_tokens_per_s.median == pytest.approx(200)
    assert_nothing_left(phone)


def test_a_runner_for_another_processor_is_refused_before_it_is_pushed(bed, fails, folder):
    phone = bed.phone(faults=Faults(wrong_abi=True))
    code, said = fails("profile", folder, *QUICK, "--runner", "/bin/true", "--adb")
    assert code == 4
    assert said.startswith(f"{phone.serial} (Google Pixel 8): runs armeabi-v7a, armeabi, the runner is for ")
    assert "sync:" not in phone.requests


RUNNERS = {
    "lacks a backend": (
        "echo 'Backend XnnpackBackend is not available.' >&2; exit 3",
        4,
        "./runner: cannot run this model: Backend",
    ),
    "refuses the model": ("echo 'bad program' >&2; exit 3", 3, "model.pte: the runtime refuses it: bad program; "),
    "crashes": ("kill -SEGV $$", 4, "./runner: crashed with SIGSEGV: "),
    "fails": ("echo first >&2; echo 'out of luck' >&2; exit 9", 4, "./runner: exit code 9: out of luck; "),
    "is refused its cores": ("echo '--affinity: no' >&2; exit 2", 4, "./runner: does not take its options: --affinity: no; "),
    "prints rubbish": ("echo hello; exit 0", 4, "./runner: printed 'hello', no measurement; "),
    "speaks to the terminal": ("printf 'a\\033[2Jb' >&2; exit 9", 4, "./runner: exit code 9: a?[2Jb; "),
    "is no program": ("exit 126", 4, "starting the runner failed: "),
}


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_runner_that(bed, fails, folder, tmp_path, kind):
    body, expected, line = RUNNERS[kind]
    phone = bed.phone()
    code, said = fails("profile", folder, *QUICK, "--runner", script(tmp_path, body), "--adb")
    assert said.startswith(f"{phone.serial} (Google Pixel 8): {line}")
    assert code == expected
    assert_nothing_left(phone)


def test_energy_is_told_where_it_may_be_read_and_no_cable_feeds_the_phone(bed, folder, tmp_path, capsys):
    phone = bed.phone()
    system = phone.data.parents[2] / "sys"
    system.chmod(0o755)
    for name in ("class", "class/power_supply", "class/power_supply/battery"):
        (system / name).mkdir(exist_ok=True)
        (system / name).chmod(0o755)
    for name, value in (("current_now", "-500000"), ("voltage_now", "4000000")):
        (system / "class/power_supply/battery" / name).write_text(f"{value}\n")
        (system / "class/power_supply/battery" / name).chmod(0o444)  # to most a phone denies them
    runner = script(tmp_path, "sleep 0.3")
    found = profiled(tmp_path, folder, "--adb", "--runner", runner)
    assert found.conditions is not None
    assert (found.conditions.powered, found.conditions.watts) == (False, pytest.approx(2))
    assert ", 2.00 W while running" in capsys.readouterr().out
    assert_nothing_left(phone)
    battery = phone.data.parents[2] / "system/etc/dumpsys/battery.txt"
    battery.chmod(0o644)
    battery.write_text(battery.read_text().replace("USB powered: false", "USB powered: true"))
    found = profiled(tmp_path, folder, "--adb", "--runner", runner)
    assert found.conditions is not None
    assert (found.conditions.powered, found.conditions.watts) == (True, None)


@pytest.mark.parametrize("before", ["before it is asked", "while it runs"])
def test_a_phone_that_is_too_hot(bed, folder, tmp_path, capsys, before):
    phone = bed.phone()
    dump = phone.data.parents[2] / "system/etc/dumpsys/thermalservice.txt"
    hot = dump.read_text().replace("Thermal Status: 0", "Thermal Status: 3")
    assert hot != dump.read_text()
    dump.parent.chmod(0o755)
    dump.chmod(0o644)
    if before == "before it is asked":
        dump.write_text(hot)
        runner = script(tmp_path)
    else:
        (phone.data / "hot").write_text(hot)
        runner = script(tmp_path, "cat /data/local/tmp/hot >/system/etc/dumpsys/thermalservice.txt; rm -f /data/local/tmp/hot")
    assert run(["profile", str(folder), *QUICK, "--runner", str(runner), "--adb"]) == 4
    said = capsys.readouterr().err
    assert said.endswith("is too hot to be measured: thermal status severe; let it cool, or give it longer rests with --rest\n")
    assert_nothing_left(phone)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_on_the_phone(bed, folder, tmp_path, sent):
    phone = bed.phone()
    runner = script(tmp_path, "sleep 60 & wait")
    command = [sys.executable, "-m", "mobile_export", "profile", str(folder), *QUICK, "--adb", "--runner", str(runner)]
    command = ["env", "--default-signal=INT", *command]  # ignored in a shell's background, and that is inherited
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not any("sleep 60" in line and "sh -c" not in line for line in phone.processes().values()):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert phone.state("fixed_performance") == "true"
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "error: interrupted; nothing was written\n")
    assert_nothing_left(phone)


@pytest.mark.parametrize("client", [bundled_adb()])
def test_another_version_of_adb(bed, fails, folder, tmp_path, client):
    """36.0.0, which adbutils carries: other features, other words for what fails."""
    if client is None:
        pytest.skip("no second adb client; pip install --no-deps adbutils")
    phone = bed.phone()
    profiled(tmp_path, folder, "--adb", phone.serial, "--runner", script(tmp_path))
    assert_nothing_left(phone)
    for kind in ("unauthorized", "disk full", "cut while pushing", "cut while running"):
        test_a_phone_that_is(bed, fails, folder, tmp_path, kind)


def test_our_side_costs_few_calls(bed, folder, tmp_path):
    """A call costs some 50 ms on a cable: facts, what is there, push, clocks, three runs, cleaning up."""
    phone = bed.phone()
    profiled(tmp_path, folder, "--adb", "--runner", script(tmp_path))
    assert len(phone.requests) == 8
