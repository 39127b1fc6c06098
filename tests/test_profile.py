"""`profile`: what it measures, its file, its gate, and what it says of runners that misbehave."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import re
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest
from exported import CONTEXT, artifact, checkpoint, onnx_artifact, with_recipe
from fake_measurement import MEASURED
from PIL import Image, ImageColor
from runner_operators import needs_compiler

from mobile_export.budget.calibration import ProfileCalibration
from mobile_export.budget.profiled import read_rates
from mobile_export.cli import run
from mobile_export.errors import MissingTool
from mobile_export.measure.build import build_runner
from mobile_export.measure.curve import curve_svg, draw
from mobile_export.measure.drawing import BLUE, HEIGHT, LEFT, WIDTH
from mobile_export.measure.drawing_png import png_of
from mobile_export.measure.machine_speed import CALLS_US, COPIES_US, MachineSpeed, measure_speed, typical
from mobile_export.measure.profile import CurvePoint, Spread, read_profile, to_json
from mobile_export.measure.tools import Need, steps_here

SMALL = ("--prompt-tokens", "10", "--new-tokens", "8", "--runs", "2")
QUICK = (*SMALL, "--no-cold")


@pytest.fixture(scope="module")
def folder() -> Path:
    return artifact(checkpoint())


def profiled(out: Path, folder: Path, *options: str):
    """The profile the command writes."""
    assert run(["profile", str(folder), "--out", str(out), *options]) == 0
    return read_profile(out)


# --- real runs -----------------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_profile_of_a_pte(folder, tmp_path, capsys):
    curve = tmp_path / "curve.svg"
    found = profiled(tmp_path / "p.json", folder, *SMALL, "--threads", "1,2", "--ops", "--curve", str(curve))
    page = capsys.readouterr().out
    held = json.loads((folder / "manifest.json").read_text())
    assert [dataclasses.asdict(file) for file in found.files] == held["files"]
    assert (found.format, found.recipe, found.runs, found.prompt_tokens, found.new_tokens) == ("pte", "w4-fast", 2, 10, 8)
    assert re.fullmatch(r"executorch [\d.]+, C\+\+", found.runtime)
    assert found.weights == "packed at load"
    assert [at.threads for at in found.by_threads] == [1, 2]
    assert found.best.decode_tokens_per_s.median == max(at.decode_tokens_per_s.median for at in found.by_threads)
    for at in found.by_threads:
        for spread in (at.load_s, at.init_s, at.first_token_s, at.prefill_tokens_per_s, at.decode_tokens_per_s):
            assert 0 < spread.least <= spread.median <= spread.largest
        assert at.slow_token_s.median >= 1 / at.decode_tokens_per_s.median
        assert 0 < at.memory.dirty_after_init_mib <= at.memory.dirty_at_end_mib < at.memory.peak_rss_mib
    assert found.cold is not None
    assert min(found.cold.load_s, found.cold.init_s, found.cold.first_token_s) > 0
    assert found.operators is not None
    assert any(line.name == "llama::custom_sdpa" for line in found.operators)
    assert found.curve is not None
    assert [point.context for point in found.curve] == [17, 48]  # two runs of tokens: 32, then 31 up to the context
    assert f"{found.best.decode_tokens_per_s.median:,.1f}" in page
    assert "llama::custom_sdpa" in page
    assert len(xml.etree.ElementTree.parse(curve).findall(".//{*}circle")) == 2


@needs_compiler
@pytest.mark.parametrize(("option", "words"), [("cache", "weight cache"), ("file", "packed file")])
def test_weights_may_be_kept_otherwise(folder, tmp_path, option, words):
    found = profiled(tmp_path / "p.json", folder, *QUICK, "--threads", "1", "--weights", option)
    assert found.weights == words
    plain = profiled(tmp_path / "plain.json", folder, *QUICK, "--threads", "1")
    assert found.logits == plain.logits


def test_without_a_compiler_the_python_runtime_measures_and_it_is_said(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = profiled(tmp_path / "p.json", folder, *QUICK, "--threads", "1", "--runs", "1")
    assert found.runtime.endswith(", Python")
    assert capsys.readouterr().err == (
        "warning: no-such-compiler: no C++ compiler of this name; "
        "measuring in ExecuTorch's Python runtime, whose attention is slower\n"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--runner", "cpp"], "no-such-compiler: no C++ compiler of this name; install a C++17 compiler and CMake 3.19"),
        (["--ops"], "no-such-compiler: no C++ compiler of this name; "),
        (["--weights", "file"], "no-such-compiler: no C++ compiler of this name; "),
    ],
)
def test_what_only_the_cpp_runner_can_is_an_error_without_a_compiler(fails, folder, monkeypatch, options, line):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, said = fails("profile", folder, *QUICK, *options)
    assert code == 4
    assert said.startswith(line)


@needs_compiler
def test_a_compiler_that_fails_is_named_with_its_first_error(fails, folder, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, said = fails("profile", folder, *QUICK, "--runner", "cpp")
    assert code == 4
    assert said.startswith(f"{broken}: the runner does not build: ")


def test_a_profile_of_an_onnx_model(tmp_path):
    found = profiled(tmp_path / "p.json", onnx_artifact(checkpoint()), *SMALL, "--threads", "2", "--runs", "1")
    assert found.format == "onnx"
    assert found.runtime.startswith("onnxruntime 1.")
    assert [file.name for file in found.files] == ["model.onnx", "model.onnx.data"]
    assert found.best_threads == 2
    assert found.best.init_s.median > 0


# --- runners that misbehave ----------------------------------------------------------------------------------------------


def script(folder: Path, body: str) -> Path:
    path = folder / "runner"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def printing(folder: Path, **changes: object) -> Path:
    """A runner that prints a measurement, changed."""
    (folder / "line.json").write_text(json.dumps({**MEASURED, **changes}) + "\n")
    return script(folder, f"cat {folder / 'line.json'}")


def test_a_runner_of_ones_own_and_the_arithmetic_of_a_profile(folder, tmp_path):
    found = profiled(tmp_path / "p.json", folder, *SMALL, "--threads", "1", "--runner", str(printing(tmp_path)))
    at = found.best
    assert found.runtime == "fake 1"
    assert at.decode_tokens_per_s == Spread(200, 200, 200)
    assert at.prefill_tokens_per_s == Spread(1000, 1000, 1000)
    assert at.slow_token_s.median == 0.006
    assert (at.init_s.median, found.cold.init_s) == (0.1, 0.1)
    memory = at.memory
    assert (memory.dirty_after_load_mib, memory.dirty_after_init_mib, memory.dirty_at_end_mib) == (1, 10, 20)
    assert (memory.clean_at_end_mib, memory.pss_at_end_mib, memory.peak_rss_mib) == (5, 3, 40)


def test_the_cold_start_drops_the_files_and_is_measured_without_a_warm_up(folder, tmp_path):
    logged = tmp_path / "log"
    runner = printing(tmp_path)
    runner.write_text(runner.read_text().replace("cat ", f'echo "$@" >> {logged}\ncat '))
    profiled(tmp_path / "p.json", folder, *SMALL, "--threads", "1", "--runs", "1", "--runner", str(runner))
    warm, cold, run_ = logged.read_text().splitlines()
    model = (folder / "model.pte").resolve()
    assert f" --sequences 0 --warm-up 0 --logits-of 3,4,5,6,7,8,9,10 --logits-values 8 --drop {model}" in cold
    assert [line for line in (warm, run_) if "--drop" in line] == []


def test_it_rests_before_each_run(folder, tmp_path):
    began = time.monotonic()
    options = ("--threads", "1", "--runs", "1", "--runner", str(printing(tmp_path)))
    profiled(tmp_path / "p.json", folder, *QUICK, *options, "--rest", "0.5")
    assert time.monotonic() - began >= 1  # a run that is not counted, and one that is


MISBEHAVIOUR = {
    "crashes": ("kill -SEGV $$", "crashed with SIGSEGV: it said nothing; pass --runner python"),
    "fails": ("echo 'first' >&2; echo 'out of luck' >&2; exit 9", "exit code 9: out of luck; "),
    "is killed": ("kill -KILL $$", "was killed, as a system does that runs out of memory; free some memory"),
    "is killed in a shell": ("exit 137", "was killed, as a system does that runs out of memory; "),
    "says nothing": ("exit 0", "printed nothing, no measurement; name a runner of this version"),
    "prints rubbish": ("echo hello", "printed 'hello', no measurement; "),
    "prints half a line": ('printf \'{"runtime": "x",\'', 'printed \'{"runtime": "x",\', no measurement; '),
    "prints bytes": ("head -c 100 /dev/urandom", "printed "),
}


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_a_runner_that(fails, folder, tmp_path, kind):
    body, line = MISBEHAVIOUR[kind]
    runner = script(tmp_path, body)
    code, said = fails("profile", folder, *QUICK, "--runner", runner)
    assert said.startswith(f"{runner}: {line}")
    assert code == 4


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"extra": 1}, "extra: Unexpected keyword argument; "),
        ({"load_s": "fast"}, "load_s: Input should be a valid number"),
        ({"init_s": float("nan")}, "init_s: Input should be a finite number; "),
        ({"at_end": {"rss_anon_kib": 1}}, "at_end.rss_file_kib: Field required; "),
    ],
)
def test_a_runner_of_another_version(fails, folder, tmp_path, changes, line):
    runner = printing(tmp_path, **changes)
    code, said = fails("profile", folder, *QUICK, "--runner", runner)
    assert said.startswith(f"{runner}: {line}")
    assert code == 4


def test_a_runner_that_hangs_is_ended_with_what_it_started(fails, folder, tmp_path):
    runner = script(tmp_path, f"sleep 77 & echo $! > {tmp_path / 'pid'}; wait")
    began = time.monotonic()
    code, said = fails("profile", folder, *QUICK, "--runner", runner, "--timeout", "0.5")
    assert time.monotonic() - began < 20
    assert (code, said) == (4, f"{runner}: did not finish within 0.5 s; raise --timeout, or ask for fewer tokens")
    started = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{started}").exists() or " Z " in Path(f"/proc/{started}/stat").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("what the runner started lives on")


@pytest.mark.parametrize(
    "said", ["running 1 tokens at 0 failed: Missing operator: [3] llama::x.out", "init: Backend Y is not available."]
)
def test_a_runner_that_lacks_something(fails, folder, tmp_path, said):
    runner = script(tmp_path, f"echo '{said}' >&2; exit 3")
    code, line = fails("profile", folder, *QUICK, "--runner", runner)
    assert (code, line) == (4, f"{runner}: cannot run this model: {said}; name a runner that has it, or export for this one")


def test_a_runner_whose_runtime_refuses_the_model(fails, folder, tmp_path):
    runner = script(tmp_path, "echo 'initialising forward failed with error 20' >&2; exit 3")
    code, said = fails("profile", folder, *QUICK, "--runner", runner)
    assert code == 3
    assert said.startswith(f"{folder / 'model.pte'}: the runtime refuses it: initialising forward failed with error 20; ")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: None, "does not start: No such file or directory; name an executable file"),
        (lambda path: path.write_text("x"), "does not start: Permission denied; "),
        (lambda path: (path.write_bytes(b"\x7fELF nonsense"), path.chmod(0o755)), "does not start: Exec format error; "),
    ],
    ids=["nowhere", "no executable", "no program"],
)
def test_a_runner_that_does_not_start(fails, folder, tmp_path, make, line):
    make(tmp_path / "runner")
    code, said = fails("profile", folder, *QUICK, "--runner", tmp_path / "runner")
    assert code == 2
    assert said.startswith(f"--runner {tmp_path / 'runner'}: {line}")


# --- requests that cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--threads", "0"], "--threads 0: not numbers from 1 on; write them like 1,2"),
        (["--threads", "1,many"], "--threads 1,many: not numbers from 1 on; "),
        (["--cores", "x"], "--cores x: not numbers from 0 on; "),
        ([*SMALL, "--cores", "4096"], "--cores 4096: no such core here; "),
        (["--weights", "none"], "--weights none: no such way; write plain, cache or file"),
        (["--prompt-tokens", "60", "--new-tokens", "5"],
         f"--prompt-tokens, --new-tokens: 65 tokens, the artifact's context is {CONTEXT}; "),
        ([*SMALL, "--runner", "python", "--ops"], "--ops: ExecuTorch's Python runtime has no such option; "),
        ([*SMALL, "--runner", "python", "--weights", "cache"],
         "--weights cache: ExecuTorch's Python runtime has no such option; "),
        (["--out", "."], "--out .: is a folder; name a file"),
        (["--curve", "no/such/c.svg"], "--curve no/such/c.svg: its folder does not exist; name a file"),
        (["again"], "ARTIFACT again: one artifact at a time; "),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be(fails, folder, options, line):
    code, said = fails("profile", folder, *options)
    assert code == 2
    assert said.startswith(line)


@pytest.mark.parametrize("option", [["--ops"], ["--weights", "file"]])
def test_what_only_a_pte_has(fails, option):
    code, said = fails("profile", onnx_artifact(checkpoint()), *QUICK, *option)
    assert code == 2
    assert said.startswith(" ".join(option))


@pytest.mark.parametrize("verb", [("coreml",), ("pte", "--backend", "coreml")], ids=["package", "delegate"])
def test_core_ml_is_not_measured_here(fails, tmp_path, verb):
    out = tmp_path / "out"
    assert run([*verb, str(checkpoint()), "--out", str(out), *with_recipe(("--max-context", "64", "--no-verify"))]) == 0
    code, said = fails("profile", out, *QUICK)
    assert code == 2
    assert said.startswith(f"{out}: Core ML runs on Apple's systems alone")


def test_a_file_that_is_not_the_manifests(fails, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "model.pte").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    code, said = fails("profile", tmp_path, *QUICK, "--runner", printing(tmp_path))
    assert code == 3
    assert said.startswith(f"{tmp_path / 'model.pte'}: SHA-256 ")


# --- the file ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(folder, tmp_path):
    """A profile of a runner that prints what is in MEASURED."""
    return profiled(tmp_path / "before.json", folder, *QUICK, "--threads", "1", "--runner", str(printing(tmp_path)))


def test_a_profile_reads_back_as_it_was_written(measured, tmp_path):
    again = tmp_path / "again.json"
    again.write_text(to_json(measured))
    assert read_profile(again) == measured


def test_json_on_stdout_is_the_file(folder, tmp_path, capsys):
    arguments = ["profile", str(folder), *QUICK, "--threads", "1", "--runner", str(printing(tmp_path)), "--json"]
    assert run([*arguments, "--out", str(tmp_path / "p.json")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "p.json").read_text())
    assert out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda values: values.update(schema_version=1), "schema_version 1, this version reads 2; "),
        (lambda values: values.update(surprise=1), "surprise: Unexpected keyword argument; "),
        (lambda values: values.pop("machine"), "machine: Field required; "),
        (lambda values: values.update(best_threads=3), "Value error, best_threads 3 was not measured; "),
        (lambda values: values["by_threads"][0]["init_s"].pop("least"), "by_threads.0.init_s.least: Field required; "),
        (lambda values: values["by_threads"][0].update(threads="two"), "by_threads.0.threads: Input should be a valid integer"),
    ],
)
def test_a_profile_that_is_none_of_ours(fails, measured, tmp_path, change, line):
    values = json.loads(to_json(measured))
    change(values)
    (tmp_path / "changed.json").write_text(json.dumps(values))
    code, said = fails("profile", "compare", tmp_path / "before.json", tmp_path / "changed.json")
    assert code == 3
    assert said.startswith(f"{tmp_path / 'changed.json'}: {line}")


@pytest.mark.parametrize(
    ("content", "line"), [("{", "not JSON: "), ("[]", "schema_version None, "), (None, "cannot be read: ")]
)
def test_a_file_that_is_no_profile(fails, measured, tmp_path, content, line):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    code, said = fails("profile", "compare", path, tmp_path / "before.json")
    assert code == 3
    assert said.startswith(f"{path}: {line}")


# --- the gate ------------------------------------------------------------------------------------------------------------


def compared(folder: Path, tmp_path: Path, *options: str, **changes: object) -> int:
    """Exit code of the comparison with a runner's changed measurement."""
    (tmp_path / "new").mkdir()
    runner = printing(tmp_path / "new", **changes)
    profiled(tmp_path / "after.json", folder, *QUICK, "--threads", "1", "--runner", str(runner))
    return run(["profile", "compare", str(tmp_path / "before.json"), str(tmp_path / "after.json"), *options])


SLOWER = [[0.0056, 0.0056, 0.0056]]  # 10.7 % less than 200 tokens/s


@pytest.mark.parametrize(
    ("options", "changes", "code"),
    [
        ([], {}, 0),
        ([], {"decode_s": SLOWER}, 1),
        (["--max-regression", "11%"], {"decode_s": SLOWER}, 0),
        (["--max-regression", "0.05"], {"decode_s": [[0.0053, 0.0053]]}, 1),
        ([], {"decode_s": [[0.004, 0.004]]}, 0),  # faster
        ([], {"prefill_s": [0.02]}, 1),
        ([], {"first_token_s": 0.03}, 1),
        ([], {"init_s": 0.2}, 1),
        ([], {"init_s": 0.05}, 0),
        ([], {"load_s": 0.004}, 0),  # four times as long, and yet nothing
        ([], {"at_end": {**MEASURED["at_end"], "rss_anon_kib": 25600}}, 1),
        ([], {"at_end": {**MEASURED["at_end"], "rss_anon_kib": 2048}}, 0),
        ([], {"peak_rss_kib": 50000}, 1),
    ],
)  # fmt: skip
def test_compare_is_a_gate(measured, folder, tmp_path, capsys, options, changes, code):
    assert compared(folder, tmp_path, *options, **changes) == code
    page = capsys.readouterr().out
    assert page.count("TOO MUCH") == code


def test_compare_as_json(measured, folder, tmp_path, capsys):
    compared(folder, tmp_path, "--json", decode_s=SLOWER)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["passed"] is False
    decode = next(change for change in found["changes"] if change["regressed"])
    assert decode["name"] == "decode, tokens/s"
    assert decode["worse"] == pytest.approx(1 - 0.005 / 0.0056)


def test_compare_says_that_machines_differ(measured, tmp_path, capsys):
    other = dataclasses.replace(measured, machine=dataclasses.replace(measured.machine, cpu="another"))
    (tmp_path / "other.json").write_text(to_json(other))
    assert run(["profile", "compare", str(tmp_path / "before.json"), str(tmp_path / "other.json")]) == 0
    assert capsys.readouterr().err == f"warning: measured on different machines: {measured.machine.cpu}, another\n"


def test_compare_of_profiles_without_a_number_of_threads_in_common(fails, measured, tmp_path):
    at = dataclasses.replace(measured.best, threads=7)
    other = dataclasses.replace(measured, by_threads=[at], best_threads=7)
    (tmp_path / "other.json").write_text(to_json(other))
    code, said = fails("profile", "compare", tmp_path / "before.json", tmp_path / "other.json")
    assert code == 3
    assert said.startswith(f"{tmp_path / 'other.json'}: measured at 7 threads, {tmp_path / 'before.json'} at 1; ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "profile compare: takes two profiles, not 0; write: profile compare BEFORE AFTER"),
        (["a.json"], "profile compare: takes two profiles, not 1; "),
        (["a.json", "b.json", "--max-regression", "much"], "--max-regression much: is no percentage; "),
    ],
)
def test_a_comparison_that_cannot_be(fails, arguments, line):
    code, said = fails("profile", "compare", *arguments)
    assert code == 2
    assert said.startswith(line)


# --- the curve -----------------------------------------------------------------------------------------------------------


def test_a_curve_is_drawn_to_scale():
    svg = xml.etree.ElementTree.fromstring(curve_svg([CurvePoint(100, 200.0), CurvePoint(400, 100.0)], 'a <b> & "c"'))
    title, *texts = [text.text for text in svg.findall("{*}text")]
    assert title == 'a <b> & "c"'
    assert {"0", "200", "400", "tokens in the cache"} <= set(texts)
    (first, second) = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.findall("{*}circle")]
    assert second[0] > first[0]
    assert second[1] > first[1]  # less, so further down
    labels = {text.text: float(text.get("y")) for text in svg.findall("{*}text") if text.get("text-anchor") == "end"}
    assert first[1] == pytest.approx(labels["200"] - 4, abs=0.2)
    assert second[1] == pytest.approx(labels["100"] - 4, abs=0.2)


@pytest.mark.parametrize("rate", [100.0, 200.0])
def test_a_curve_as_png_has_its_points_where_the_svg_has_them(rate):
    points = [CurvePoint(100, 200.0), CurvePoint(400, rate)]
    image = Image.open(io.BytesIO(png_of(draw(points, "a title")))).convert("RGB")
    assert image.size == (2 * WIDTH, 2 * HEIGHT)
    blue = ImageColor.getrgb(BLUE)
    for x, y in draw(points, "").line:
        assert image.getpixel((round(2 * x), round(2 * y))) == blue
        assert image.getpixel((round(2 * x), round(2 * y) + 30)) != blue
    text = [image.getpixel((x, y)) for x in range(2 * LEFT, 2 * LEFT + 100) for y in range(20, 46)]
    assert min(text) < (100, 100, 100)  # the title


def test_a_png_without_pillow_is_refused_before_anything_is_measured(fails, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, line = fails("profile", folder, *QUICK, "--curve", tmp_path / "c.png")
    assert code == 4
    assert line == "pillow: is not installed; pip install 'mobile-export[plots]', or name a file that ends in .svg"


# --- the machine alone ---------------------------------------------------------------------------------------------------


def sizes(*rates: float) -> list[dict[str, float]]:
    return [{"mib": mib, "rate": rate} for mib, rate in zip((0.5, 2.0, 8.0), rates, strict=True)]


SPEED = {
    "runtime": "fake 1",
    "threads": 1,
    "stream": sizes(100, 50, 30),
    "decode_8_bit": sizes(400, 200, 90),
    "decode_4_bit": sizes(300, 250, 110),
    "cold_8_bit": sizes(80, 90, 90),
    "again_8_bit": sizes(300, 150, 90),
    "cold_4_bit": sizes(100, 110, 110),
    "again_4_bit": sizes(290, 180, 120),
    "prefill_4_bit_gops": 600.0,
    "attention_gops": 15.0,
    "prefill_attention_gops": 90.0,
    "block_4_bit_us": 80.0,
    "prefill_block_8_bit_us": 1200.0,
    "prefill_block_4_bit_us": 1600.0,
}
BLOCK = 2 * (2 * 512**2 + 3 * 512 * 1536)  # operations of the benchmark's block


def test_what_a_machine_does_as_a_prediction_wants_it():
    """Cold rates of small matrices, second runs of a block's 2 MiB, which the cache keeps and 8 MiB it does not."""
    found = MachineSpeed(**SPEED).calibration()
    assert ProfileCalibration.model_validate(found)  # what `check --profile` reads
    between_us = 1600 - 128 * BLOCK / 600e3
    assert found == {
        "stream_gb_s": pytest.approx(40 * 1028 / 1024),  # 80 G operations on one byte for two of them
        "stream_4_bit_gb_s": pytest.approx(50 * 0.5625),
        "decode_gops_8_bit": 150,
        "decode_gops_4_bit": 180,
        "prefill_gops_8_bit": pytest.approx(128 * BLOCK / (1200 - between_us) / 1e3),
        "prefill_gops_4_bit": 600.0,
        "attention_gops": 15.0,
        "prefill_attention_gops": 90.0,
        "activations_g_s": pytest.approx(128 * (12 * 512 + 4 * 1536) / (between_us + 128 * COPIES_US) / 1e3),
        "overhead_us": pytest.approx(80 - BLOCK / 100e3 + CALLS_US),
        "cache_mib": 2.0,
    }


def test_a_machine_without_a_cache_and_with_noise_still_has_a_calibration():
    flat = {name: sizes(100, 100, 100) for name in SPEED if name.startswith(("cold", "again"))}
    noisy = {"block_4_bit_us": 1.0, "prefill_block_8_bit_us": 1.0, "prefill_block_4_bit_us": 1.0}
    found = MachineSpeed(**{**SPEED, **flat, **noisy}).calibration()
    assert found["cache_mib"] == 0.25
    assert found["overhead_us"] == CALLS_US
    assert ProfileCalibration.model_validate(found)


def test_of_several_runs_the_median_counts():
    def run(factor: float) -> MachineSpeed:
        scaled = {name: sizes(*(factor * at["rate"] for at in value)) if isinstance(value, list) else value
                  for name, value in SPEED.items()}  # fmt: skip
        return MachineSpeed(**{**scaled, "attention_gops": factor})

    found = typical([run(1.0), run(5.0), run(2.0)])
    assert [at.rate for at in found.cold_4_bit] == [200, 220, 220]
    assert (found.attention_gops, found.block_4_bit_us, found.runtime) == (2.0, 80.0, "fake 1")


@needs_compiler
def test_a_machine_is_measured_and_foretells_a_model(tmp_path, capsys):
    """One process at one thread: numbers of a real machine, and a verdict from them."""
    found = measure_speed(build_runner(), 1, processes=1)
    assert found.threads == 1
    assert [at.mib for at in found.stream] == [at.mib for at in found.decode_8_bit] == [at.mib for at in found.decode_4_bit]
    assert [at.mib for at in found.cold_8_bit] == [at.mib for at in found.again_4_bit] == [at.mib for at in found.stream][:6]
    rates = (found.stream, found.decode_8_bit, found.decode_4_bit, found.cold_8_bit, found.cold_4_bit)
    assert all(0.1 < at.rate < 1e5 for some in rates for at in some)
    assert found.prefill_4_bit_gops > found.attention_gops > 0.1  # a product of many tokens against one that waits for memory
    assert 0.1 < found.block_4_bit_us < found.prefill_block_4_bit_us < 1e6
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"calibration": found.calibration()}))
    model = onnx_artifact(checkpoint())
    capsys.readouterr()
    assert run(["check", str(model), "--dram", "6GB", "--profile", str(file), "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert verdict["decode_tokens_per_s"][0] > 0


def fake_calibrator(folder: Path, body: str) -> Path:
    path = folder / "calibrator"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo no >&2; exit 3", "exit code 3: no; report it with --debug"),
        ("sleep 20", "did not finish within 0.5 s; try fewer threads"),
        ("echo rubbish", "printed no measurement; name a runner of this version of mobile-export"),
        ("echo '{}'", "runtime: Field required; name a runner of this version of mobile-export"),
    ],
)
def test_a_micro_benchmark_that_fails_is_one_line(tmp_path, body, said):
    path = fake_calibrator(tmp_path, body)
    with pytest.raises(MissingTool) as error:
        measure_speed(path, 1, processes=1, timeout_s=0.5 if "sleep" in body else 30)
    assert str(error.value) == f"{path}: {said}"


def test_calibrate_writes_what_check_reads(tmp_path, capsys, monkeypatch):
    runner = fake_calibrator(tmp_path, f"echo '{json.dumps(SPEED)}'")
    monkeypatch.setattr("mobile_export.measure.build.build_runner", lambda: runner)
    out = tmp_path / "machine.json"
    assert run(["profile", "calibrate", "--threads", "1", "--runs", "2", "--out", str(out)]) == 0
    assert re.search(r"^stream_gb_s +40\.2$", capsys.readouterr().out, re.MULTILINE)
    assert json.loads(out.read_text())["calibration"] == read_rates(out).calibration.model_dump()


# --- doctor --------------------------------------------------------------------------------------------------------------


def test_doctor_says_what_works_here(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    steps = {step["name"]: step for step in found["steps"]}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    import executorch.version

    needs = {need["name"]: need["version"] for need in steps["pte, verify, eval"]["needs"]}
    assert needs["executorch"] == executorch.version.__version__.split("+")[0]
    assert all(step["works"] for step in steps.values() if step["required"])


def test_doctor_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run(["doctor"]) == 0  # nothing every installation has is missing
    page = capsys.readouterr().out
    assert re.search(r"^profile \.pte in C\+\+ +NO +.*no-such-compiler missing", page, re.MULTILINE)
    assert "\nprofile .pte in C++: Debian: apt install g++ cmake; " in page


def test_doctor_with_a_package_that_is_too_old(capsys, monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.9.1" if name == "onnxruntime" else real(name))
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["onnxruntime-genai>=0.1", "onnxruntime>=1.28"])
    assert run(["doctor"]) == 1
    page = capsys.readouterr().out
    assert re.search(r"^onnx, verify, eval +NO +.*onnxruntime 1\.9\.1 \(needs 1\.28\)", page, re.MULTILINE)


def test_a_program_that_does_not_start_is_missing(monkeypatch, tmp_path):
    (tmp_path / "cmake").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "cmake").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (step,) = [step for step in steps_here() if step.name == "profile .pte in C++"]
    assert Need("cmake", None, "3.19") in step.needs
    assert not step.works
