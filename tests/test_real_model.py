"""One run on a real model, SmolLM2-135M: the sizes the issue asks for, the verification at full depth, a true sentence."""

from __future__ import annotations

import json

import pytest

from mobile_export.cli import run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "out"
    assert run(["pte", "smollm2-135m", "--recipe", "w4-fast", "--out", str(out), "--max-context", "512"]) == 0
    return out


def test_its_size_is_what_one_copy_of_every_weight_takes(exported, capsys):
    """Theory for 4-bit linears and one 8-bit table is 88.4 MB; with the table twice it would be 117."""
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["files"][0]["bytes"] <= 89_500_000
    assert run(["inspect", "smollm2-135m", "--json"]) == 0
    predicted = {part["name"]: part["bytes_recipe"] for part in json.loads(capsys.readouterr().out)["parts"]}
    measured = {part["name"]: part["bytes"] for part in manifest["parts"]}
    assert all(abs(measured[name] - size) <= 0.01 * size for name, size in predicted.items())


def test_thirty_blocks_agree_exactly_on_short_sequences(exported):
    checks = json.loads((exported / "manifest.json").read_text())["verification"]["checks"]
    exact = [check for check in checks if check["name"].endswith("the best agreement")]
    assert [check["limit"] for check in exact] == [1e-4] * 3
    assert all(check["measured"] <= 1e-4 for check in exact)


def test_the_stock_runner_says_where_paris_is_and_stops(exported, capsys):
    assert run(["generate", str(exported), "--chat", "What is the capital of France?", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "Paris" in said["new_text"]
    assert said["stopped_at_eos"]
    assert "<|im_end|>" not in said["new_text"]


# --- the same model for onnxruntime ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_onnx(tmp_path_factory):
    out = tmp_path_factory.mktemp("real-onnx") / "out"
    assert run(["onnx", "smollm2-135m", "--recipe", "w4-all-fast", "--out", str(out), "--max-context", "512"]) == 0
    return out


def test_its_onnx_files_are_no_larger_than_the_stock_builders(exported_onnx):
    """onnxruntime-genai's own int4 builder makes 86.3 MB of data of it, and a graph; with the table twice it would be 104."""
    manifest = json.loads((exported_onnx / "manifest.json").read_text())
    sizes = {file["name"]: file["bytes"] for file in manifest["files"]}
    assert sizes == {name: (exported_onnx / name).stat().st_size for name in ("model.onnx", "model.onnx.data")}
    assert sum(sizes.values()) <= 86_500_000
    parts = {part["name"]: part for part in manifest["parts"]}
    assert sum(part["bytes"] for part in parts.values()) == sum(sizes.values())
    for part in parts.values():
        assert part["predicted_bytes"] is None or abs(part["bytes"] - part["predicted_bytes"]) <= 0.01 * part["bytes"]


def test_thirty_onnx_blocks_agree_exactly_where_nothing_is_rounded(exported_onnx):
    found = json.loads((exported_onnx / "manifest.json").read_text())["verification"]
    assert found["passed"]
    exact = [check for check in found["checks"] if check["name"].startswith("float activations")]
    assert [check["limit"] for check in exact] == [1e-4] * 2
    assert all(check["measured"] <= 2e-5 for check in exact)


def test_onnxruntime_genai_says_where_paris_is_and_stops(exported_onnx, capsys):
    assert run(["generate", str(exported_onnx), "--chat", "What is the capital of France?", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "Paris" in said["new_text"]
    assert said["stopped_at_eos"]
    assert "<|im_end|>" not in said["new_text"]
