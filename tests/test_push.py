"""`push` with the real adb client against phones of tests/adb_device: whole or not at all, and only what is not there yet."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adb_device.bed import Bed
from adb_device.bed import Phone as BedPhone
from adb_device.faults import Faults
from adb_device.needs import bundled_adb, needs_bed
from carried import CARRIED_BYTES, carried_artifact

from mobile_export.cli import run

pytestmark = needs_bed

ARTIFACTS = "/data/local/tmp/mobile-export/artifacts"


@pytest.fixture
def client() -> str:
    return "adb"


@pytest.fixture
def bed(tmp_path, monkeypatch, client):
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setenv("ADB", str(client))
    with Bed(tmp_path, client) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def artifact_in(folder: Path, seed: int = 0, manifest: str = "llama-w4-fast") -> Path:
    """An artifact, with a file of the user's beside it."""
    made = carried_artifact(folder, seed, manifest)
    (made / "notes.txt").write_text("mine")
    return made


def on(phone: BedPhone) -> Path:
    """The host's path of the phone's artifacts."""
    return phone.data / "mobile-export/artifacts"


def sha256sum(phone: BedPhone, does: str) -> None:
    """Give the phone another program of this name."""
    tool = phone.root / "system/bin/sha256sum"
    tool.parent.chmod(0o755)
    tool.unlink()
    tool.write_text(f"#!/system/bin/sh\n{does}\n")
    tool.chmod(0o755)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wanted(artifact: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(artifact).items() if name not in ("notes.txt", "README.md")}


def test_an_artifact_is_there_under_its_folder_s_name_and_all_may_read_it(bed, tmp_path, capsys):
    phone = bed.phone()
    out = artifact_in(tmp_path / "My model (w4)")
    assert run(["push", str(out)]) == 0
    assert contents(on(phone) / "My-model-w4") == wanted(out)
    size = sum(map(len, wanted(out).values())) / 1e6
    line = f"{phone.serial}: {ARTIFACTS}/My-model-w4: {size:.2f} MB, {size:.2f} MB pushed\n"
    assert capsys.readouterr() == (line, "")
    for path in (on(phone).parent, on(phone), on(phone) / "My-model-w4"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in (on(phone) / "My-model-w4").iterdir()} == {0o644}
    assert [path.name for path in on(phone).iterdir()] == ["My-model-w4"]


def test_what_is_there_is_not_pushed_again(bed, tmp_path, capsys):
    phone = bed.phone()
    out = artifact_in(tmp_path / "out")

    def pushed(source: Path) -> tuple[int, int]:
        """Bytes, and calls that push."""
        before = phone.requests.count("sync:")
        assert run(["push", str(source / "model.pte"), "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["phones"]
        assert contents(on(phone) / "out") == wanted(source)
        return found["pushed_bytes"], phone.requests.count("sync:") - before

    total = sum(map(len, wanted(out).values()))
    assert pushed(out) == (total, 1)
    assert pushed(out) == (0, 0)
    (out / "tokenizer.json").write_text("another")
    assert pushed(out) == (len("another"), 1)
    (tmp_path / "new").mkdir()
    assert pushed(artifact_in(tmp_path / "new/out", seed=1))[0] > CARRIED_BYTES
    assert [path.name for path in on(phone).iterdir()] == ["out"]


def test_a_file_that_is_not_the_artifact_s_is_gone_after_the_next_push(bed, tmp_path):
    phone = bed.phone()
    out = artifact_in(tmp_path / "out")
    assert run(["push", str(out)]) == 0
    (on(phone) / "out/old.pte").write_bytes(b"old")
    assert run(["push", str(out)]) == 0
    assert contents(on(phone) / "out") == wanted(out)


def test_an_onnx_model_goes_with_what_its_runner_reads(bed, tmp_path):
    phone = bed.phone()
    out = artifact_in(tmp_path / "out", manifest="onnx")
    (out / "genai_config.json").write_text("{}")
    assert run(["push", str(out)]) == 0
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= contents(on(phone) / "out").keys()


def test_list_and_remove(bed, fails, tmp_path, capsys):
    phone = bed.phone()
    assert run(["push", "--list"]) == 0
    assert capsys.readouterr().out == f"{phone.serial}: no artifacts in {ARTIFACTS}\n"
    for name in ("one", "two"):
        assert run(["push", str(artifact_in(tmp_path / name))]) == 0
    (on(phone) / ".one.new").mkdir()  # what a push that was killed left
    (on(phone) / "a b; reboot").mkdir()  # not ours
    capsys.readouterr()
    assert run(["push", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [f"{phone.serial}:", "one", "two"]
    assert run(["push", "--list", "--json"]) == 0
    total = sum(map(len, wanted(tmp_path / "one").values()))
    held = [{"name": name, "bytes": total} for name in ("one", "two")]
    assert json.loads(capsys.readouterr().out)["phones"] == [{"serial": phone.serial, "artifacts": held}]
    line = f"--remove three: {phone.serial} has no such artifact; there is one, two"
    assert fails("push", "--remove", "three") == (2, line)
    assert fails("push", "--remove", "../..")[0] == fails("push", "--remove", "a b; reboot")[0] == 2
    (on(phone) / "a b; reboot").rmdir()
    assert run(["push", "--remove", "one"]) == 0
    assert capsys.readouterr().out == f"{phone.serial}: one removed\n"
    assert sorted(path.name for path in on(phone).iterdir()) == [".one.new", "two"]
    assert run(["push", str(tmp_path / "one")]) == 0
    for name in ("one", "two"):
        assert run(["push", "--remove", name]) == 0
    assert list(phone.data.iterdir()) == []


def test_several_phones_and_one_that_cannot(bed, tmp_path, capsys):
    good, full = bed.phone(), bed.phone("galaxy-a54", Faults(free_kib=60_000))
    out = artifact_in(tmp_path / "out")
    assert run(["push", str(out), "--adb", "all", "--json"]) == 4
    said, errors = capsys.readouterr()
    found = json.loads(said)
    assert [each["serial"] for each in found["phones"]] == [good.serial]
    assert errors == f"error: {found['errors'][0]}\n"
    then = "free some, or: mobile-export push --list, and --remove NAME"
    assert found["errors"] == [f"{full.serial}: has 59 MiB of room, 64 are needed; {then}"]
    assert list(full.data.iterdir()) == []


def test_what_is_no_artifact_for_a_phone(bed, fails, tmp_path):
    phone = bed.phone()
    one_of = "push: takes one of ARTIFACT, --list and --remove NAME; write: mobile-export push ARTIFACT"
    assert fails("push") == fails("push", "--list", "--remove", "a") == (2, one_of)
    package = artifact_in(tmp_path / "p", manifest="coreml-stock")
    line = "Core ML runs on Apple's systems alone; copy the folder into the iOS app, see ios_demo/README.md"
    assert fails("push", package) == (2, f"{package}: {line}")
    out = artifact_in(tmp_path / "out")
    (out / "tokenizer.json").unlink()
    line = "the manifest names it and it is not there; export the artifact again"
    assert fails("push", out) == (3, f"{out / 'tokenizer.json'}: {line}")
    (out / "model.pte").write_bytes(b"another")
    assert fails("push", out)[0] == 3
    assert phone.requests == []


FAULTS = {
    "unauthorized": (Faults(unauthorized=True), "it has not allowed this computer (looking for phones); unlock it"),
    "disk full": (Faults(disk_full_after=5000), "has no room left for what is to be pushed (pushing to "),
    "cut while pushing": (Faults(cut_push_after=5000), "the connection was cut (pushing to "),
    "cut while checking": (Faults(cut_shell="chmod 644"), "the connection was cut (checking what arrived); check the cable"),
    "rubbish": (Faults(rubbish_shell="chmod 644"), "answered '"),
    "not writable": (Faults(not_writable=True), "does not let us write to /data/local/tmp: "),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_push_that_fails_leaves_the_older_artifact_whole(bed, fails, tmp_path, kind):
    faults, line = FAULTS[kind]
    phone = bed.phone(faults=faults)
    if kind == "cut while checking":
        sha256sum(phone, 'case $PWD in *.new) sleep 2 ;; esac; exec toybox sha256sum "$@"')
    older = artifact_in(tmp_path / "out")
    if kind != "not writable":
        (on(phone) / "out").mkdir(parents=True)
        for name, content in wanted(older).items():
            (on(phone) / "out" / name).write_bytes(content)
    before = wanted(older)
    code, said = fails("push", artifact_in(older, seed=1))
    assert code == 4
    assert said.startswith(f"{phone.serial}: {line}")
    if kind != "not writable":
        assert contents(on(phone) / "out") == before
        assert [path.name for path in on(phone).iterdir()] == ["out"]


def test_a_phone_whose_files_arrive_otherwise(bed, fails, tmp_path, monkeypatch):
    """A disk that damages what it is given, as sha256sum there sees it."""
    phone = bed.phone()
    sha256sum(phone, 'case $PWD in *.new) for f; do echo "$(printf %064d 1)  $f"; done; esac')
    code, said = fails("push", artifact_in(tmp_path / "out"))
    assert (code, said.split(";")[0]) == (4, f"{phone.serial}: model.pte did not arrive as it was sent")
    assert list(phone.data.iterdir()) == []


@pytest.mark.parametrize(
    "faults", [Faults(missing_tools=("sha256sum",)), Faults(no_shell_v2=True), Faults(cut_push_after=5000, times=1)]
)
def test_a_phone_that_gets_it_all_the_same(bed, tmp_path, faults):
    phone = bed.phone(faults=faults)
    out = artifact_in(tmp_path / "out")
    for _ in range(2):
        assert run(["push", str(out)]) == 0
    assert contents(on(phone) / "out") == wanted(out)


def test_an_old_phone(bed, tmp_path, capsys):
    phone = bed.phone("nexus5x")
    out = artifact_in(tmp_path / "out")
    assert run(["push", str(out)]) == run(["push", "--list"]) == 0
    assert contents(on(phone) / "out") == wanted(out)


def test_an_artifact_whose_renaming_was_cut_short_is_put_back(bed, fails, tmp_path):
    """Between the two renames of a push that was killed there is only the old one, under another name."""
    phone = bed.phone(faults=Faults(disk_full_after=5000))
    out = artifact_in(tmp_path / "out")
    before = wanted(out)
    (on(phone) / ".out.old").mkdir(parents=True)
    for name, content in before.items():
        (on(phone) / ".out.old" / name).write_bytes(content)
    assert fails("push", artifact_in(out, seed=1))[0] == 4
    assert contents(on(phone) / "out") == before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_push_leaves_nothing(bed, tmp_path, sent):
    phone = bed.phone(faults=Faults(slow_link=50_000))
    command = ["env", "--default-signal=INT", sys.executable, "-m", "mobile_export", "push", str(artifact_in(tmp_path / "out"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    until = time.monotonic() + 60
    while not any(path.stat().st_size for path in phone.data.rglob("*.pte")):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(sent)
    assert (process.communicate(timeout=60), process.returncode) == (("", "error: interrupted; nothing was written\n"), 130)
    assert list(phone.data.iterdir()) == []


@pytest.mark.parametrize("client", [bundled_adb()])
def test_another_version_of_adb(bed, tmp_path, client):
    if client is None:
        pytest.skip("no second adb client; pip install --no-deps adbutils")
    phone = bed.phone()
    out = artifact_in(tmp_path / "out")
    assert run(["push", str(out)]) == 0
    assert contents(on(phone) / "out") == wanted(out)
