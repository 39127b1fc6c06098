"""`generate`, `eval` and `verify --json` on Core ML artifacts, as on those of the other formats."""

from __future__ import annotations

import json

import pytest
from exported import CONTEXT, checkpoint, coreml_artifact, manifest, weights_of
from test_eval import evaluated, text  # noqa: F401 - a fixture
from tokenizers import Tokenizer

from mobile_export.cli import run
from mobile_export.verify.float16_numbers import float16_decoder
from mobile_export.verify.reference import reference_logits

LAYOUTS = {"stock": (), "functions": ("--layout", "functions", "--max-prompt", "8")}
PROMPT = "the quick brown fox jumps over the lazy dog"


def of(layout: str, recipe: str):
    return coreml_artifact(checkpoint(), "--recipe", recipe, *LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generate_continues_as_the_reference_does(capsys, layout):
    """Greedily, by the same codes in PyTorch; the prompt is longer than a chunk of prefill."""
    folder = of(layout, "w4-fast")
    capsys.readouterr()
    assert run(["generate", str(folder), PROMPT, "--max-new-tokens", "12", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = tokenizer.encode(PROMPT).ids
    decoder, told = float16_decoder(weights_of(checkpoint(), "w4-fast"), CONTEXT), []
    while len(told) < 12 and (not told or told[-1] != 2):
        told.append(int(reference_logits(decoder, tokens + told)[-1].argmax()))
    assert found["prompt_tokens"] == len(tokens) > 8
    assert found["new_tokens"] == len(told)
    assert found["text"].startswith(PROMPT)
    said = [token for token in told if token != 2]
    assert found["new_text"] == tokenizer.decode(tokens + said).removeprefix(tokenizer.decode(tokens))
    assert run(["generate", str(folder), PROMPT, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == found["text"] + "\n"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generate_stops_at_the_end_of_the_context(capsys, layout):
    folder = of(layout, "w4-fast")
    capsys.readouterr()
    assert run(["generate", str(folder), PROMPT, "--max-new-tokens", "500", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_tokens"] + found["new_tokens"] == CONTEXT or found["stopped_at_eos"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_longer_than_the_context_is_refused(fails, layout):
    code, line = fails("generate", of(layout, "w4-fast"), PROMPT * 12)
    assert code == 3
    assert line.startswith("PROMPT: is ")
    assert line.endswith(f" tokens long; leave room in a context of {CONTEXT}")


def test_both_layouts_have_the_same_figures_and_they_are_the_checkpoints_but_for_float16(capsys, text):  # noqa: F811
    folders = [of(layout, "fp32") for layout in LAYOUTS]
    stock, fixed = (evaluated(capsys, folder, "--text", text, "--against", checkpoint())[1] for folder in folders)
    assert fixed["tokens"] == stock["tokens"] > 60
    assert fixed["perplexity"] == pytest.approx(stock["perplexity"], rel=1e-5)
    assert stock["perplexity"] == pytest.approx(stock["reference_perplexity"], rel=1e-3)
    assert 0 < stock["kl"] < 1e-5, "float16's rounding of the weights, and no more"
    assert stock["top1"] > 0.98


def test_four_bits_cost_what_their_codes_cost(capsys, text):  # noqa: F811
    found = evaluated(capsys, of("stock", "w4-fast"), "--text", text, "--against", checkpoint())[1]
    assert found["kl"] > 1e-4
    code, _ = evaluated(
        capsys, of("stock", "w4-fast"), "--text", text, "--against", checkpoint(), "--max-kl", str(found["kl"] / 2)
    )
    assert code == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_verify_says_as_json_what_the_manifest_recorded(capsys, layout):
    folder = of(layout, "w4-fast")
    capsys.readouterr()
    assert run(["verify", str(folder), "--against", str(checkpoint()), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found == manifest(folder)["verification"]
    assert found["oracle"] == "the same numbers, rounded to float16, in plain PyTorch"
    names = [check["name"] for check in found["checks"]]
    assert ("as swift-transformers calls it" in names) == (layout == "stock")
    assert len(names) == len(set(names)) == (9 if layout == "stock" else 8)
    assert run(["verify", str(folder / "model.mlpackage"), "--against", str(checkpoint())]) == 0, "the package names it, too"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspect_finds_one_copy_of_everything(capsys, layout):
    folder = coreml_artifact(checkpoint(), "--recipe", "w4-fast", "--schedule", "immediate", *LAYOUTS[layout])
    capsys.readouterr()
    for named in (folder, folder / "model.mlpackage"):
        assert run(["inspect", str(named), "--strict", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["format"] == "coreml"
        assert found["audit"]["duplicates"] == []
        assert found["audit"]["float_matrices"] == []
