"""Which recipe a command takes when none is named, and what calibrates by it; artifacts of the time when it did not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from exported import checkpoint, manifest, onnx_artifact

from mobile_export.cli import run
from mobile_export.errors import InputError
from mobile_export.quantize import calibration


@pytest.mark.parametrize("command", [("pte",), ("pte", "--backend", "coreml"), ("onnx",), ("coreml",)], ids=" ".join)
def test_an_export_calibrates_unless_it_is_told_otherwise(command, tmp_path, monkeypatch, fails):
    """Seconds are spared by going no further than where calibration is asked for."""

    def asked(*_):
        raise InputError("calibration", "was asked for", "which is what is wanted here")

    monkeypatch.setattr(calibration, "calibrated", asked)
    code, said = fails(*command, checkpoint(), "--out", tmp_path / "out")
    assert (code, said) == (3, "calibration: was asked for; which is what is wanted here")


def test_an_export_calibrates_with_sampled_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert run(["onnx", str(checkpoint(blocks=1, max_positions=32)), "--out", str(out)]) == 0
    held = manifest(out)
    assert held["recipe"]["name"] == "w4"
    assert (held["calibration"]["text"], held["calibration"]["tokens"]) == ("sampled from the model", 160 * 32)
    assert held["calibration"]["left"] == []  # the table is tied


@pytest.mark.parametrize(
    ("verb", "options", "code"),
    [("inspect", (), 0),
     *(("check", ("--dram", "6GB", "--format", form), 0) for form in ("pte", "onnx", "coreml")),
     ("check", ("--dram", "6GB", "--max-memory", "1MiB"), 1)],  # other recipes are tried
)  # fmt: skip
def test_sizes_are_told_without_calibrating(verb, options, code, monkeypatch, capsys):
    monkeypatch.setattr(calibration, "calibrated", None)
    assert run([verb, str(checkpoint()), *options, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["recipe"] == "w4"


def test_an_artifact_made_when_w4_was_not_calibrated_is_verified_by_what_its_manifest_says(tmp_path, monkeypatch, capsys):
    """Not by the recipe that has the name now."""
    source = checkpoint("mobilellm", blocks=2)
    out = Path(shutil.copytree(onnx_artifact(source, "--recipe", "w4-fast"), tmp_path / "out"))
    held = manifest(out)
    held["recipe"] |= {"name": "w4", "description": "4-bit linears in groups of 32, 8-bit table"}
    (out / "manifest.json").write_text(json.dumps(held))
    monkeypatch.setattr(calibration, "calibrated", None)
    assert run(["verify", str(out), "--against", str(source)]) == 0
    assert run(["check", str(out), "--dram", "6GB"]) == 0
