"""An artifact folder appears whole or not at all, whatever ends the run: an error, Ctrl-C, SIGTERM, kill -9, a full disk."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mobile_export.emit.artifact import check_out, new_artifact
from mobile_export.errors import MissingTool, UsageError

# What a run does, as a process of its own: it says "half" in the middle of its work and waits to be ended.
# Ctrl-C is what it is at a terminal: a shell's background jobs, and so tests run in one, inherit it ignored.
RUN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from mobile_export.emit.artifact import new_artifact
{before}
with new_artifact(Path(sys.argv[1])) as folder:
    (folder / "model.pte").write_text("new")
    print("half", flush=True)
    {middle}
    (folder / "manifest.json").write_text("{{}}")
print("whole", flush=True)
"""


def write_artifact(folder, text):
    (folder / "model.pte").write_text(text)
    (folder / "manifest.json").write_text("{}")


def contents(folder):
    """File name -> text of everything below a folder, hidden things too."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "folder" for path in sorted(folder.rglob("*"))
    }


OLD = {"out": "folder", "out/manifest.json": "{}", "out/model.pte": "old"}
NEW = OLD | {"out/model.pte": "new"}


@pytest.fixture
def out(tmp_path):
    """An artifact written before, alone in its folder."""
    folder = tmp_path / "place" / "out"
    folder.mkdir(parents=True)
    write_artifact(folder, "old")
    return folder


# --- success -----------------------------------------------------------------------------------------------------------


def test_a_new_artifact_takes_the_old_ones_place(out):
    with new_artifact(out) as folder:
        write_artifact(folder, "new")
        assert {name: text for name, text in contents(out.parent).items() if name.startswith("out")} == OLD
    assert contents(out.parent) == NEW


def test_what_only_the_old_artifact_held_is_gone(out):
    (out / "tokenizer.json").write_text("of the old one")
    with new_artifact(out) as folder:
        write_artifact(folder, "new")
    assert contents(out.parent) == NEW


def test_parents_that_do_not_exist_are_made(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    with new_artifact(out) as folder:
        write_artifact(folder, "new")
    assert contents(out.parent) == NEW


def test_an_empty_folder_is_a_place_to_write(tmp_path):
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)
    with new_artifact(out) as folder:
        write_artifact(folder, "new")
    assert contents(out.parent) == NEW


@pytest.mark.parametrize("old", [True, False])
def test_the_folder_one_is_in(tmp_path, monkeypatch, old):
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)
    if old:
        write_artifact(out, "old")
    monkeypatch.chdir(out)
    with new_artifact(Path()) as folder:
        write_artifact(folder, "new")
    assert contents(tmp_path / "place") == NEW


def test_a_link_to_a_folder(tmp_path, out):
    """It comes to hold the new artifact, and nothing is left beside it."""
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(out)
    with new_artifact(link) as folder:
        write_artifact(folder, "new")
    assert (link / "model.pte").read_text() == "new"
    assert [path.name for path in link.parent.iterdir()] == ["link"]
    assert {path.name for path in out.parent.iterdir()} == {"out"}


def test_outside_the_main_thread(out):
    """Signals are not a thread's to handle; the artifact is written all the same."""

    def write():
        with new_artifact(out) as folder:
            write_artifact(folder, "new")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert contents(out.parent) == NEW


def test_the_handler_of_sigterm_is_given_back(out):
    before = signal.getsignal(signal.SIGTERM)
    with new_artifact(out) as folder:
        assert signal.getsignal(signal.SIGTERM) is not before
        write_artifact(folder, "new")
    assert signal.getsignal(signal.SIGTERM) is before


# --- failure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_what_was_there(out, failure, old):
    if not old:
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    before = contents(out.parent)
    with pytest.raises(failure), new_artifact(out) as folder:  # noqa: PT012
        (folder / "model.pte").write_text("new")
        raise failure
    assert contents(out.parent) == before


def test_a_failing_last_step_leaves_what_was_there(out, monkeypatch):
    """The old artifact has been set aside by then, and comes back."""
    real = Path.rename

    def rename(self, target):
        if Path(target) == out and "partial" in self.name:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), new_artifact(out) as folder:
        write_artifact(folder, "new")
    assert contents(out.parent) == OLD


def start(out, *, before="", middle="time.sleep(60)"):
    script = RUN.format(before=before, middle=middle)
    return subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextlib.contextmanager
def half_way(out):
    """A run that is in the middle of its work; ended when the block ends, if it is not by then."""
    process = start(out)
    try:
        assert process.stdout.readline() == b"half\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_what_was_there(out, sent):
    with half_way(out) as process:
        process.send_signal(sent)
        _, error = process.communicate(timeout=20)
    assert error.rstrip().endswith(b"KeyboardInterrupt")
    assert process.returncode != 0
    assert contents(out.parent) == OLD


def test_after_kill_9_the_old_artifact_is_whole_and_the_next_run_cleans_up(out):
    with half_way(out) as process:
        process.kill()
        process.wait()
    left = contents(out.parent)
    assert {name: left[name] for name in OLD} == OLD
    assert len(left) > len(OLD)  # nobody was there to remove it
    with new_artifact(out) as folder:
        write_artifact(folder, "new")
    assert contents(out.parent) == NEW


def test_after_kill_9_between_the_two_renames_the_old_artifact_comes_back(out):
    """The one moment in which neither is in place: the next run puts the old one back before it starts."""
    before = """
import os, signal
real = Path.rename
def rename(self, target):
    real(self, target)
    if self.name == "out":
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename
"""
    process = start(out, before=before, middle="pass")
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(RuntimeError), new_artifact(out):
        raise RuntimeError  # whatever this run comes to
    assert contents(out.parent) == OLD


def test_what_another_run_is_writing_is_left_alone(out):
    with half_way(out) as process:
        with new_artifact(out) as folder:
            write_artifact(folder, "new")
        beside = [path.name for path in out.parent.iterdir() if path.name != "out"]
        assert beside == [f".out.partial-{process.pid}"]
    assert (out / "model.pte").read_text() == "new"


def test_what_a_killed_run_of_the_same_number_left_behind(out):
    """In a container every run has the same process number, and the folder outlives the container."""
    for kind in ("partial", "old"):
        left = out.parent / f".out.{kind}-{os.getpid()}"
        left.mkdir()
        write_artifact(left, "half")
    with new_artifact(out) as folder:
        assert contents(folder) == {}
        write_artifact(folder, "new")
    assert contents(out.parent) == NEW


@pytest.mark.parametrize("name", ["model [w4]", "a*b", "question?"])
def test_leftovers_of_a_name_with_signs_in_it(tmp_path, name):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f".{name}.partial-{gone.pid}"
    left.mkdir()
    with new_artifact(tmp_path / name) as folder:
        write_artifact(folder, "new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_leftovers_of_another_name_are_left_alone(out):
    gone = subprocess.Popen(["true"])
    gone.wait()
    other = out.parent / f".output.partial-{gone.pid}"
    other.mkdir()
    with new_artifact(out) as folder:
        write_artifact(folder, "new")
    assert other.is_dir()


# --- no space, no permission -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        out = disk / "out"
        out.mkdir()
        write_artifact(out, "old")
        with pytest.raises(MissingTool) as error, new_artifact(out, needed_bytes=900_000) as folder:
            (folder / "model.pte").write_bytes(bytes(2**21))
        assert contents(disk) == OLD
    line = str(error.value)
    assert line.startswith(f"{out}: no space left on the disk (")
    assert line.endswith(" free, 0.90 MB needed); free some, or name another place with --out")
    assert error.value.exit_code == 4


def test_a_disk_without_space_where_none_may_be_mounted(out):
    """The kernel's own device for it."""
    with pytest.raises(MissingTool, match="no space left on the disk"), new_artifact(out) as folder:  # noqa: PT012
        write_artifact(folder, "new")
        Path("/dev/full").write_bytes(b"1")
    assert contents(out.parent) == OLD


def test_a_disk_too_small_is_told_before_anything_is_written(out):
    entered = []
    with pytest.raises(MissingTool) as error, new_artifact(out, needed_bytes=2**60):
        entered.append(True)
    assert not entered
    assert "1152921504606.85 MB needed" in str(error.value)
    assert contents(out.parent) == OLD


def test_a_place_that_is_read_only(tmp_path):
    def refused(place):
        before = contents(place)
        for out in (place / "out", place / "new" / "out"):
            with pytest.raises(MissingTool) as error, new_artifact(out):
                pytest.fail("there is nothing to write to")
            line = str(error.value)
            assert line.startswith(f"{out}: cannot be written: ")
            assert line.endswith("; name another place with --out")
            assert error.value.exit_code == 4
        assert contents(place) == before

    if os.geteuid():
        (tmp_path / "place").mkdir()
        (tmp_path / "place").chmod(0o555)
        refused(tmp_path / "place")
    else:  # no mode stops root
        with mounted(tmp_path / "place", "ro") as place:
            refused(place)


# --- a place that holds something else -------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check_out, lambda out: new_artifact(out).__enter__()])
def test_a_file_is_not_replaced(tmp_path, check):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError) as error:
        check(tmp_path / "out")
    assert str(error.value) == f"--out {tmp_path / 'out'}: is a file; name a folder"
    assert error.value.exit_code == 2
    assert contents(tmp_path) == {"out": "mine"}


@pytest.mark.parametrize("check", [check_out, lambda out: new_artifact(out).__enter__()])
@pytest.mark.parametrize("name", ["thesis.tex", ".git"])
def test_a_folder_with_other_things_is_not_replaced(tmp_path, check, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UsageError) as error:
        check(out)
    assert str(error.value) == (f"--out {out}: is a folder with other things in it; name a new folder, or an older artifact's")
    assert error.value.exit_code == 2
    assert contents(out) == {name: "mine"}


def test_a_place_below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "out"):
        with pytest.raises((MissingTool, UsageError)), new_artifact(out):
            pytest.fail("there is nothing to write to")
    assert contents(tmp_path) == {"file": "mine"}


def test_a_name_too_long_for_the_disk(tmp_path):
    """As a name of 250 letters is too, once `.partial-` stands behind it."""
    for letters in (300, 250):
        with pytest.raises((MissingTool, UsageError)), new_artifact(tmp_path / ("a" * letters)) as folder:
            write_artifact(folder, "new")
    assert contents(tmp_path) == {}


def test_the_run_above_comes_to_an_end_by_itself(out):
    """That `start` writes a whole artifact when nobody ends it: else the tests that end it would show nothing."""
    began = time.monotonic()
    process = start(out, middle="pass")
    output, error = process.communicate(timeout=20)
    assert (process.returncode, output, error) == (0, b"half\nwhole\n", b"")
    assert contents(out.parent) == NEW
    assert time.monotonic() - began < 20
