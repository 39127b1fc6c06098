"""tests/golden/ holds what the code gives today: the apps' tests read it, and no Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
from carried import MANIFESTS
from exported import CONTEXT, PROMPT, artifact, checkpoint, manifest
from golden import EXPORTS, FILES, GOLDEN, SIZES, as_text

from mobile_export.budget.verdict import WORST
from mobile_export.measure.launch import read_result
from mobile_export.measure.measurement import MEASUREMENT

AGAIN = "python tests/golden.py writes it anew, and --export the manifests, too"


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_the_code_gives(name):
    assert (GOLDEN / name).read_text(encoding="utf-8") == as_text(list(FILES[name]())), AGAIN


def test_there_is_no_other_file():
    assert {path.name for path in GOLDEN.iterdir()} == {*FILES, MANIFESTS.name}
    assert {path.stem for path in MANIFESTS.iterdir()} == set(EXPORTS)


def test_a_stored_manifest_is_what_an_export_writes_today():
    """All of it but what names the files of one machine, the versions, and figures of the verification."""
    assert (str(CONTEXT), str(PROMPT)) == (SIZES[1], SIZES[3])
    fresh = manifest(artifact(checkpoint()))
    stored = json.loads((MANIFESTS / "llama-w4-fast.json").read_text(encoding="utf-8"))
    apart = {"source", "source_files", "versions", "tool", "verification", "files"}
    assert fresh.keys() == stored.keys(), AGAIN
    assert {key for key in fresh if fresh[key] != stored[key]} <= apart, AGAIN
    assert [check["name"] for check in stored["verification"]["checks"]] == [
        check["name"] for check in fresh["verification"]["checks"]
    ]


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def test_every_outcome_of_every_limit_is_among_the_verdicts():
    answers = [answer for case in cases("device.json") for answer in case["answers"]]
    for limit in ("memory", "app limit", "left by the system"):
        assert {answer["outcome"] for answer in answers if answer["limit"] == limit} == set(WORST)


def test_a_result_that_an_app_must_write_is_read_back():
    for case in cases("profile.json"):
        text = str(case["text"])
        assert text.isascii()
        assert text.count("\n") == 1
        assert read_result("app", "model.pte", 0, text.encode(), b"") == MEASUREMENT.validate_python(case["measurement"])
