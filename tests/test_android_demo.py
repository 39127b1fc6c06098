"""android_demo/ without a phone: the core runs on the JVM, the app is compiled against stubs of the classes it uses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from android_tools import benchmark_command, needs_kotlin, ran
from exported import artifact, checkpoint

from mobile_export.manifest import read_manifest
from mobile_export.measure.host import logits_here
from mobile_export.measure.measurement import MEASUREMENT


def benchmark(files: Path, **extras: object) -> dict[str, Any]:
    """What the benchmark activity would write."""
    given = {"run": "one", **{name.replace("_", "-"): str(value) for name, value in extras.items()}}
    intent = [part for name, value in given.items() for part in ("--es", name, value)]
    ran([*benchmark_command(files), *intent], timeout=100)
    (held,) = (files / "runs").iterdir()
    assert held.name == "one.json"
    return json.loads(held.read_text())


@needs_kotlin
def test_the_benchmark_measures_what_the_runner_does(tmp_path: Path) -> None:
    made = artifact(checkpoint())
    asked = {"prompt_tokens": 12, "new_tokens": 3, "sequences": 2, "logits_of": "3,4,5,6,7,8,9,10", "logits_values": 96}
    measured = MEASUREMENT.validate_python(benchmark(tmp_path, model=made / "model.pte", **asked))
    assert (measured.threads, measured.prompt_tokens) == (1, 12)
    assert len(measured.prefill_s) == 2
    assert [len(steps) for steps in measured.decode_s] == [3, 3]
    assert measured.peak_rss_kib >= measured.at_start.rss_anon_kib > 0
    here = logits_here(made, read_manifest(made), pytest.fail, timeout_s=100)
    assert measured.logits is not None
    assert (measured.logits.tokens, measured.logits.count) == (here.tokens, here.count)
    assert measured.logits.values == pytest.approx(here.values, abs=1e-5)
    assert measured.logits.sum == pytest.approx(sum(measured.logits.values))
    assert measured.logits.argmax == here.argmax


@needs_kotlin
@pytest.mark.parametrize(
    ("extras", "kind", "said"),
    [
        ({"model": "/nowhere.pte"}, "refused", "/nowhere.pte: no such file"),
        ({"model": __file__}, "refused", "loading the program failed"),
        ({}, "usage", "model: name a .pte file"),
        ({"model": "m", "threads": 0}, "usage", "threads: from 1 to 64"),
        ({"model": "m", "new-tokens": "a few"}, "usage", "new-tokens a few: no number from 0 on"),
        ({"model": "m", "weight-cache": ""}, "usage", "weight-cache: the app has no such option"),
    ],
)
def test_what_cannot_be_measured_is_one_line_in_the_same_file(
    tmp_path: Path, extras: dict[str, object], kind: str, said: str
) -> None:
    error = benchmark(tmp_path, **extras)["error"]
    assert error["kind"] == kind
    assert said in error["what"]
    assert "\n" not in error["what"]


@needs_kotlin
def test_a_run_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        benchmark(tmp_path / "files", run="../one", model="m")
    assert caught.value.stderr.startswith("run: 1 to 64 letters")
    assert list(tmp_path.rglob("*.json")) == []
