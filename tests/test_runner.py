"""The runners, C++ and Python, on tiny artifacts: equal logits, every option, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from exported import CONTEXT, PROMPT, artifact, checkpoint, onnx_artifact
from runner_operators import needs_compiler

from mobile_export.measure.build import build_runner
from mobile_export.measure.measurement import MEASUREMENT, Measurement
from mobile_export.measure.operators import (
    BETWEEN,
    DELEGATE,
    INTO_DELEGATES,
    OPERATOR,
    STEP,
    operator_times,
    shares,
)
from mobile_export.measure.profile import OperatorTime
from mobile_export.verify.onnx_runtime import OnnxRuntime
from mobile_export.verify.pte_runtime import PteRuntime

SAME = 1e-5  # of the largest logit: float32 summed in another order
TOKENS = [5, 9, 2, 44, 71, 3, 8, 90, 12, 33, 7, 60]  # more than fit in one call
PTE_RUNNER = [sys.executable, "-m", "mobile_export.measure.pte_runner"]
ONNX_RUNNER = [sys.executable, "-m", "mobile_export.measure.onnx_runner"]
SMALL = ["--prompt-tokens", "10", "--new-tokens", "4"]


def cpp() -> list[str]:
    return [str(build_runner())]


def runs(command: list[str], model: Path, *options: str) -> Measurement:
    """What a runner measured: one line, and its logits all of them where it can tell so many."""
    line = [*command, "--model", str(model), *SMALL, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1
    return MEASUREMENT.validate_json(done.stdout)


def logits_of(measured: Measurement) -> torch.Tensor:
    assert measured.logits is not None
    return torch.tensor(measured.logits.values)


def expected(runtime: PteRuntime | OnnxRuntime, step: int = PROMPT) -> torch.Tensor:
    for start in range(0, len(TOKENS), step):
        logits = runtime.step(TOKENS[start : start + step], start)
    return logits


def assert_same(measured: Measurement, logits: torch.Tensor) -> None:
    """Values, the place of the largest and the sum are those of these logits."""
    found, held = logits_of(measured), measured.logits
    assert held is not None
    assert held.tokens == TOKENS
    assert held.count == len(logits)
    assert len(found) > 1
    assert (found - logits[: len(found)]).abs().max() < SAME * logits.abs().max()
    assert held.argmax == int(logits.argmax())
    assert held.sum == pytest.approx(float(logits.double().sum()), abs=len(logits) * SAME * float(logits.abs().max()))


ASK = ("--logits-of", ",".join(map(str, TOKENS)))
ALL = (*ASK, "--logits-values", "100000")
PTE = {
    "w4-fast": lambda: artifact(checkpoint()),
    "int8 cache": lambda: artifact(checkpoint(), "--kv", "int8"),
    "plain operators": lambda: artifact(checkpoint(), "--attention", "core"),
    "blocks shared": lambda: artifact(checkpoint("mobilellm", layer_sharing=True, form="bin"), "--recipe", "fp32"),
}


@needs_compiler
@pytest.mark.parametrize("kind", PTE)
def test_the_cpp_runner_computes_what_the_python_runtime_does(kind):
    model = PTE[kind]() / "model.pte"
    for threads in ("1", "2"):
        assert_same(runs(cpp(), model, *ALL, "--threads", threads), expected(PteRuntime(model)))


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [["--in-memory"], ["--affinity", "0"], ["--sequences", "0", "--warm-up", "0"], ["--sequences", "3", "--warm-up", "2"]],
    ids=" ".join,
)
def test_no_option_changes_what_is_computed(options):
    model = artifact(checkpoint()) / "model.pte"
    assert_same(runs(cpp(), model, *ALL, *options), expected(PteRuntime(model)))


@needs_compiler
@pytest.mark.parametrize("mode", [["--weight-cache"], ["--weight-cache", "--in-memory"]], ids=" ".join)
@pytest.mark.parametrize("kind", PTE)
def test_the_weight_cache_frees_nothing_that_is_still_read(kind, mode):
    """It frees a delegate's constants once they are packed: those read as they are stored must not lie in a delegate."""
    model = PTE[kind]() / "model.pte"
    assert runs(cpp(), model, *ALL, *mode).logits == runs(cpp(), model, *ALL).logits


@needs_compiler
def test_packed_weights_are_written_once_and_then_mapped(tmp_path):
    """Of a model with enough weights to be seen beside everything else a process holds."""
    large = checkpoint(blocks=1, hidden=512, heads=4, kv_heads=1, ffn=2048)
    model, packed = artifact(large, "--no-verify") / "model.pte", tmp_path / "packed"
    plain = runs(cpp(), model, *ALL)
    made = runs(cpp(), model, *ALL, "--packed-weights", str(packed))
    size, written = packed.stat().st_size, packed.stat().st_mtime_ns
    assert size > 1_500_000
    mapped = runs(cpp(), model, *ALL, "--packed-weights", str(packed))
    assert packed.stat().st_mtime_ns == written
    assert plain.logits == made.logits == mapped.logits

    def dirty(measured: Measurement) -> int:
        return 1024 * (measured.at_end.rss_anon_kib - measured.at_start.rss_anon_kib)

    assert dirty(mapped) < dirty(plain) - 0.9 * size
    assert 1024 * (mapped.at_end.rss_file_kib - plain.at_end.rss_file_kib) > 0.9 * size


@needs_compiler
def test_what_the_cpp_runner_says_of_a_run():
    model = artifact(checkpoint()) / "model.pte"
    measured = runs(cpp(), model, "--threads", "2", "--sequences", "3")
    assert measured.runtime.startswith("executorch 1.")
    assert measured.threads == 2
    assert "XnnpackBackend" in measured.backends
    assert measured.prompt_tokens == 10
    assert len(measured.prefill_s) == len(measured.decode_s) == 3
    assert {len(steps) for steps in measured.decode_s} == {4}
    times = [measured.load_s, measured.init_s, measured.first_token_s, *measured.prefill_s, *measured.decode_s[0]]
    assert all(0 < seconds < 60 for seconds in times)
    stages = [measured.at_start, measured.after_load, measured.after_init, measured.at_end]
    assert all(stage.rss_anon_kib > 0 and stage.rss_file_kib > 0 for stage in stages)
    assert measured.at_start.rss_anon_kib < measured.after_init.rss_anon_kib <= measured.at_end.rss_anon_kib
    assert measured.at_end.pss_kib <= measured.at_end.rss_anon_kib + measured.at_end.rss_file_kib <= measured.peak_rss_kib
    assert measured.logits is None


@needs_compiler
def test_the_trace_counts_the_operators_of_a_step(tmp_path):
    folder = artifact(checkpoint())
    trace = tmp_path / "trace.etdp"
    runs(cpp(), folder / "model.pte", "--etdump", str(trace), "--sequences", "2")
    operators = {line.name: line for line in operator_times(trace)}
    graph = json.loads((folder / "manifest.json").read_text())["pte"]
    for name in ("llama::custom_sdpa", "llama::update_cache"):
        assert operators[name].calls == graph["outside_delegates"][name]
        assert not operators[name].delegate
    assert operators[INTO_DELEGATES].calls == graph["delegate_calls"]
    assert operators["embedding_byte"].calls == 1
    linears = [line for name, line in operators.items() if "QB4W" in name]
    assert sum(line.calls for line in linears) == 5 * 2  # qkv, o, gate, up, down; two blocks
    assert all(line.delegate for line in linears)
    assert operators[BETWEEN].calls == sum(graph["outside_delegates"].values())


def test_what_lies_around_operators_makes_up_the_rest_of_a_step():
    calls = Counter({("add", False): 3, ("linear", True): 4, (DELEGATE, False): 2, (OPERATOR, False): 3, (STEP, False): 1})
    took = {("add", False): 1.0, ("linear", True): 5.0, (DELEGATE, False): 7.0, (OPERATOR, False): 1.5, (STEP, False): 10.0}
    assert shares(calls, took) == [
        OperatorTime("linear", True, 4, 5.0, 0.5),
        OperatorTime(INTO_DELEGATES, True, 2, 2.0, 0.2),
        OperatorTime(BETWEEN, False, 3, 2.0, 0.2),
        OperatorTime("add", False, 3, 1.0, 0.1),
    ]


def test_the_python_runner_computes_it_too():
    model = artifact(checkpoint()) / "model.pte"
    measured = runs(PTE_RUNNER, model, *ASK, "--threads", "2")
    assert_same(measured, expected(PteRuntime(model)))
    assert measured.threads == 2
    assert "XnnpackBackend" in measured.backends


@pytest.mark.parametrize("arguments", [(), ("--portable",), ("--kv", "int8")], ids=str)
def test_the_onnx_runner_computes_what_onnxruntime_does(arguments):
    """With one cache written in place, and with one that grows."""
    model = onnx_artifact(checkpoint(), *arguments) / "model.onnx"
    measured = runs(ONNX_RUNNER, model, *ASK, "--threads", "2")
    assert_same(measured, expected(OnnxRuntime(model, "1.28"), step=CONTEXT))
    assert measured.runtime.startswith("onnxruntime 1.")


# --- what is refused -----------------------------------------------------------------------------------------------------


def refusal(command: list[str], *options: str) -> tuple[int, str]:
    """Exit code and the last line of what it said; nothing on stdout."""
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr.strip().splitlines()[-1]


@needs_compiler
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--modle", "x"], "--modle: no such option"),
        (["--threads"], "--threads: no such option, or its value is missing"),
        (["--threads", "0"], "--threads: at least 1"),
        (["--threads", "two"], "--threads two: not numbers from 0 on"),
        (["--threads", "2x"], "--threads 2x: not numbers from 0 on"),
        (["--affinity", "0,-1"], "--affinity 0,-1: not numbers from 0 on"),
        (["--affinity", "1000"], "--affinity: these cores cannot be had"),
        (["--prompt-tokens", "0"], "--prompt-tokens: at least 1"),
        (["--packed-weights", "x" * 300], "--packed-weights: a path of at most 255 bytes"),
    ],
)
def test_the_cpp_runner_refuses_a_command_line(options, line):
    assert refusal(cpp(), "--model", "x", *options) == (2, line)


def test_the_cpp_runner_asks_for_a_model():
    assert refusal(cpp()) == (2, "--model: name a .pte file")
    assert refusal(cpp(), "--model", "x", "--calibrate") == (2, "--calibrate: takes no --model")


def cut_off(model: Path, folder: Path) -> Path:
    path = folder / "cut.pte"
    path.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    return path


def not_a_program(model: Path, folder: Path) -> Path:
    path = folder / "text.pte"
    path.write_bytes(b"not a program " * 100)
    return path


def nowhere(model: Path, folder: Path) -> Path:
    return folder / "nowhere.pte"


@needs_compiler
@pytest.mark.parametrize("damage", [cut_off, not_a_program, nowhere])
def test_the_cpp_runner_refuses_what_is_no_program(tmp_path, damage):
    model = damage(artifact(checkpoint()) / "model.pte", tmp_path)
    code, line = refusal(cpp(), "--model", str(model))
    assert code == 3
    assert line.startswith(f"{model}: loading the program failed with error ")


@needs_compiler
def test_the_cpp_runner_refuses_more_tokens_than_the_context_holds():
    model = artifact(checkpoint()) / "model.pte"
    code, line = refusal(cpp(), "--model", str(model), "--prompt-tokens", "60", "--new-tokens", "8")
    assert code == 3
    assert line.startswith(f"running 1 tokens at {CONTEXT} failed with error ")


def test_the_python_runner_refuses_what_is_no_program(tmp_path):
    code, line = refusal(PTE_RUNNER, "--model", str(cut_off(artifact(checkpoint()) / "model.pte", tmp_path)))
    assert code == 3
    assert line.startswith("loading the program failed: ")
