"""`eval`: its figures against the formulas worked by hand, in every runtime; its gates; what it refuses."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from exported import artifact, checkpoint, onnx_artifact

from mobile_export.cli import run
from mobile_export.verify.quality import measure_quality, windows_of

TEXT = "the quick brown fox jumps over the lazy dog and then the other thing in the morning " * 5


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def evaluated(capsys, *arguments):
    code = run(["eval", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])  # an export on the way prints its report


# --- the figures -------------------------------------------------------------------------------------------------------


def by_hand(windows, artifact_logits, reference_logits):
    """Every figure in scalars, sharing no code with ours."""
    losses, wanted_losses, divergences, agree = [], [], [], 0
    for window in windows:
        for at, token in enumerate(window[1:]):
            found, wanted = (np.exp(np.float64(f(window)[at].numpy())) for f in (artifact_logits, reference_logits))
            found, wanted = found / found.sum(), wanted / wanted.sum()
            losses.append(-math.log(found[token]))
            wanted_losses.append(-math.log(wanted[token]))
            divergences.append(sum(w * math.log(w / f) for w, f in zip(wanted, found, strict=True)))
            agree += int(found.argmax() == wanted.argmax())
    return losses, wanted_losses, divergences, agree


def logits_of(seed):
    return lambda window: torch.randn(len(window), 11, generator=torch.Generator().manual_seed(seed + sum(window)))


def test_the_figures_are_the_formulas_worked_by_hand():
    windows = [[1, 4, 9, 2, 2], [7, 3, 3]]
    found = measure_quality(windows, logits_of(0), logits_of(50), lambda _: None)
    losses, wanted, divergences, agree = by_hand(windows, logits_of(0), logits_of(50))
    assert found.tokens == len(losses) == 6
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)))
    assert found.reference_perplexity == pytest.approx(math.exp(np.mean(wanted)))
    assert found.perplexity_increase == pytest.approx(math.exp(np.mean(losses)) / math.exp(np.mean(wanted)) - 1)
    assert found.kl == pytest.approx(np.mean(divergences))
    assert found.kl_error == pytest.approx(np.std(divergences, ddof=1) / math.sqrt(6))
    assert found.kl_p99 == pytest.approx(np.quantile(divergences, 0.99))
    assert found.top1 == pytest.approx(agree / 6)
    assert found.perplexity_error == pytest.approx(found.perplexity * np.std(losses, ddof=1) / math.sqrt(6))
    spread = np.std(np.array(losses) - np.array(wanted), ddof=1) / math.sqrt(6)
    assert found.perplexity_increase_error == pytest.approx((1 + found.perplexity_increase) * spread)


def test_an_artifact_that_equals_its_reference_lost_nothing():
    found = measure_quality([[1, 4, 9, 2]], logits_of(0), logits_of(0), lambda _: None)
    assert (found.perplexity_increase, found.kl, found.top1) == (0, 0, 1)


def test_without_a_reference_nothing_is_compared():
    found = measure_quality([[1, 4, 9, 2]], logits_of(0), None, lambda _: None)
    assert found.reference_perplexity is found.kl is found.top1 is None


@pytest.mark.parametrize("bos", [None, 1])
def test_windows_hold_every_token_once(bos):
    tokens = list(range(10, 33))
    windows = list(windows_of(tokens, 6, bos))
    assert all(len(window) <= 6 for window in windows)
    inner = [window if bos is None else window[1:] for window in windows]
    assert bos is None or all(window[0] == bos for window in windows)
    assert [token for window in inner for token in window] == tokens


# --- in the runtimes ---------------------------------------------------------------------------------------------------


def test_every_runtime_gives_the_same_figures_for_float_weights(capsys, text):
    folder = checkpoint()
    made = (
        artifact(folder, "--recipe", "fp32"),
        onnx_artifact(folder, "--recipe", "fp32"),
        onnx_artifact(folder, "--recipe", "fp32", "--all-logits"),
    )
    figures = [evaluated(capsys, out, "--text", text, "--against", folder)[1] for out in made]
    for found in figures:
        assert found["tokens"] == figures[0]["tokens"] > 60, "more than one window of the tiny context"
        assert found["perplexity"] == pytest.approx(figures[0]["perplexity"], rel=1e-5)
        assert abs(found["perplexity_increase"]) < 1e-5
        assert found["kl"] < 1e-9
        assert found["top1"] == 1


def test_four_bits_cost_more_than_eight(capsys, text):
    folder = checkpoint()
    costs = [
        evaluated(capsys, onnx_artifact(folder, "--recipe", recipe), "--text", text, "--against", folder)[1]["kl"]
        for recipe in ("w4-all-fast", "w8-fast")
    ]
    assert costs[0] > 10 * costs[1] > 0


def test_the_gates(capsys, text):
    folder = checkpoint()
    out = onnx_artifact(folder, "--recipe", "w4-all-fast")
    named = (out, "--text", text, "--against", folder)
    kl = evaluated(capsys, *named)[1]["kl"]
    assert evaluated(capsys, *named, "--max-kl", kl * 1.01)[0] == 0
    code, found = evaluated(capsys, *named, "--max-kl", kl * 0.99)
    assert (code, found["passed"]) == (1, False)
    assert evaluated(capsys, *named, "--max-perplexity-increase", "1000%")[0] == 0
    assert run(["eval", *map(str, named), "--max-kl", str(kl * 0.99)]) == 1
    assert f"over limit KL {kl:.4f}, limit " in capsys.readouterr().out


def test_json_lines_and_fewer_tokens(capsys, text, tmp_path):
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    lines = tmp_path / "texts.jsonl"
    lines.write_text(json.dumps({"text": TEXT, "id": 7}) + "\n", encoding="utf-8")
    assert evaluated(capsys, out, "--text", lines) == evaluated(capsys, out, "--text", text)
    assert evaluated(capsys, out, "--text", text, "--tokens", 20)[1]["tokens"] == 19


# --- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.txt", None, "cannot be read: No such file or directory; name a text file"),
        ("latin.txt", b"caf\xe9", "is not UTF-8: byte 3; convert it to UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{', "line 2 is not JSON: "),
        ("keys.jsonl", b'{"body": "a"}', "line 1 has no text under 'text'; write "),
        ("short.txt", b"", "has no two tokens to predict one from another; give a longer text"),
    ],
)
def test_a_text_that_cannot_be_used(capsys, tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    assert run(["eval", str(out), "--text", str(path)]) == 3
    line = capsys.readouterr().err
    assert line.startswith("error: --text")
    assert says in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("option", [("--max-kl", "0.1"), ("--max-perplexity-increase", "3%")])
def test_a_gate_needs_a_checkpoint(capsys, text, option):
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    assert run(["eval", str(out), "--text", str(text), *option]) == 2
    assert capsys.readouterr().err.endswith("compare with a checkpoint; add --against CHECKPOINT\n")


def test_a_limit_that_is_no_percentage(capsys, text):
    assert run(["eval", "out", "--text", str(text), "--max-perplexity-increase", "little"]) == 2
    assert capsys.readouterr().err == "error: --max-perplexity-increase little: is no percentage; write it like 3% or 0.03\n"


def test_another_models_checkpoint(capsys, text):
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    assert run(["eval", str(out), "--text", str(text), "--against", str(checkpoint(hidden=96))]) == 3
    assert "was made from a model with hidden_size 64" in capsys.readouterr().err


def test_a_damaged_tokenizer(capsys, text, tmp_path):
    out = shutil.copytree(onnx_artifact(checkpoint(), "--recipe", "w8-fast"), tmp_path / "out")
    (out / "tokenizer.json").write_bytes(b"{")
    assert run(["eval", str(out), "--text", str(text)]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {out / 'tokenizer.json'}: cannot be read: ")
