"""`check` from the command line: its answers, exit codes, forms and errors; it is fast and never loads torch."""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from budget_models import SMOLLM2_135M
from budget_models import model as model_of
from exported import checkpoint, onnx_artifact
from tiny_families import written

from mobile_export.budget.calibration import calibration_of_phone
from mobile_export.budget.changes import candidates, cheapest_change
from mobile_export.budget.facts import facts_of_manifest
from mobile_export.budget.latency import decode_curve
from mobile_export.budget.phones import read_phones
from mobile_export.budget.rate_curve import BOTTOM, TOP
from mobile_export.budget.rate_curve import HEIGHT as RATE_HEIGHT
from mobile_export.budget.verdict import Limits, Use, target_of_phone
from mobile_export.cli import run
from mobile_export.manifest import read_manifest
from mobile_export.quantize.recipe import packaged_recipes, read_recipe

ROOT = Path(__file__).parents[1]
CALIBRATION = {
    "stream_gb_s": 30,
    "stream_4_bit_gb_s": 30,
    "decode_gops_8_bit": 100,
    "decode_gops_4_bit": 100,
    "prefill_gops_8_bit": 500,
    "prefill_gops_4_bit": 500,
    "attention_gops": 10,
    "prefill_attention_gops": 50,
    "activations_g_s": 4,
    "overhead_us": 20,
    "cache_mib": 8,
}


@pytest.fixture(scope="module")
def model():
    return onnx_artifact(checkpoint("llama"), "--kv", "int8")


@pytest.fixture
def check(capsys):
    """Run `check`; its exit code and what it printed."""

    def ran(*arguments):
        capsys.readouterr()
        code = run(["check", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert err == "" or err.startswith("warning: "), err
        return code, out

    return ran


def verdicts(out):
    return {verdict["phone"]: verdict for verdict in json.loads(out)["verdicts"]}


def test_a_small_model_fits_every_phone(check, model):
    code, out = check(model, "--phone", "all", "--json")
    assert code == 0
    assert {name: verdict["outcome"] for name, verdict in verdicts(out).items()} == dict.fromkeys(read_phones(), "fits")


def test_an_answer_of_no_is_exit_code_1_with_a_reason(check, model):
    code, out = check(model, "--dram", "6GB", "--max-memory", "5MiB")
    assert code == 1
    said = r"6 GB of DRAM: memory \d+ \(\d+ to \d+\) MiB, 5 allowed; no change we know would make it fit"
    assert re.fullmatch(said, out.splitlines()[-1])
    assert out.splitlines()[0].startswith(f"{model}/model.onnx: recipe w4-fast, context 64, KV int8")


def test_an_uncertain_answer_is_a_yes_unless_asked_otherwise(check, model):
    needed = json.loads(check(model, "--dram", "6GB", "--json")[1])["memory"]["peak_bytes"]
    between = f"{(needed[0] + needed[2]) / 2:.0f}B"
    code, out = check(model, "--dram", "6GB", "--max-memory", between, "--json")
    assert (code, [v["outcome"] for v in verdicts(out).values()]) == (0, ["uncertain"])
    assert check(model, "--dram", "6GB", "--max-memory", between, "--fail-on-uncertain")[0] == 1


def test_the_default_budget_is_a_tenth_of_the_dram(check, model):
    out = check(model, "--phone", "Pixel 6a", "--dram", "12GB", "--json")[1]
    allowed = {name: verdict["answers"][0]["allowed"] for name, verdict in verdicts(out).items()}
    assert allowed["Pixel 6a"] == pytest.approx([0.6 * 2**30] * 3)
    assert allowed["12 GB of DRAM"] == pytest.approx([1.2 * 2**30] * 3)


def test_json_terms_add_up_and_name_what_is_known(check, model):
    facts = json.loads(check(model, "--phone", "iPhone 15 Pro", "--json")[1])
    running = [term for term in facts["memory"]["terms"] if term["when"] in ("always", "run")]
    total = sum(term["dirty_bytes"][1] + term["clean_bytes"][1] for term in running)
    assert total == pytest.approx(facts["memory"]["peak_bytes"][1])
    verdict = facts["verdicts"][0]
    assert [answer["limit"] for answer in verdict["answers"]] == ["memory", "app limit"]
    assert verdict["speed_from"] == "the phone table: Apple A17 Pro"
    assert verdict["sources"] == read_phones()["iPhone 15 Pro"].sources


def test_a_profile_takes_the_place_of_the_table(check, model, tmp_path):
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"calibration": CALIBRATION}))
    table, profile = (
        verdicts(check(model, "--phone", "Pixel 8", "--json", *more)[1])["Pixel 8"] for more in ((), ("--profile", file))
    )
    wide, narrow = (v["decode_tokens_per_s"][2] / v["decode_tokens_per_s"][0] for v in (table, profile))
    assert narrow < 1.6 < wide  # measured within 20 % to both sides
    assert profile["speed_from"] == "profile profile.json"
    alone = check(model, "--dram", "6GB", "--profile", file, "--min-decode-rate", 1, "--max-ttft", "10s", "--battery")
    assert alone[0] == 0
    assert "J a token" in alone[1]


def test_a_checkpoint_is_checked_before_any_export(check):
    code, out = check(checkpoint("llama"), "--recipe", "w8-fast", "--kv", "int8", "--dram", "6GB", "--context", 64, "--json")
    assert code == 0
    facts = json.loads(out)
    assert (facts["format"], facts["recipe"], facts["kv_dtype"], facts["context"]) == ("pte", "w8-fast", "int8", 64)
    once, twice = (
        json.loads(check(checkpoint("llama"), "--schedule", schedule, "--dram", "6GB", "--json")[1])["memory"]["terms"]
        for schedule in ("none", "immediate")
    )
    size = {
        name: [term["dirty_bytes"][1] for terms in (once, twice) for term in terms if term["name"] == name]
        for name in ("packed weights", "KV cache")
    }
    assert size["packed weights"][0] == size["packed weights"][1]
    assert 2 * size["KV cache"][0] == size["KV cache"][1]
    for form in ("onnx", "coreml"):
        assert json.loads(check(checkpoint("llama"), "--format", form, "--dram", "6GB", "--json")[1])["format"] == form


def test_markdown_is_two_tables_and_the_reasons(check, model):
    code, out = check(model, "--phone", "Pixel 8", "--dram", "6GB", "--max-memory", "5MiB", "--markdown")
    assert code == 1
    assert out.startswith("**2 does not fit.** ")
    assert out.count("\n| --- |") == 2
    assert "- Pixel 8: memory " in out
    assert "<details><summary>memory at the peak</summary>" in out


class Page(HTMLParser):
    """Collects what a page refers to, its bars and its text; every tag must be closed."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.refers, self.widths, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.refers += [values[key] for key in ("src", "href") if key in values]
        if tag == "i" and values.get("class") in ("dirty", "clean"):
            self.widths.append(float(re.search(r"width:([\d.]+)%", values["style"])[1]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_its_bars_are_to_scale(check, model, tmp_path):
    file = tmp_path / "page.html"
    code, _ = check(model, "--phone", "Pixel 8", "--max-memory", "5MiB", "--battery", "--html", file)
    assert code == 1
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.refers == []
    assert not re.search(r"https?:|url\(|@import|<script", text)
    peak = json.loads(check(model, "--phone", "Pixel 8", "--json")[1])["memory"]["peak_bytes"]
    assert sum(page.widths) == pytest.approx(100 * peak[1] / (1.06 * peak[2]), abs=0.5)
    assert "1 of 1: does not fit" in page.text
    assert "No change we know would make it fit" in page.text


def test_the_page_draws_the_rate_over_the_context(check, model, tmp_path):
    """Ends of the line and of the band are the rates `check` itself gives at both ends of the context."""
    file = tmp_path / "page.html"
    check(model, "--phone", "Pixel 8", "--min-decode-rate", 20, "--html", file)
    text = file.read_text(encoding="utf-8")
    facts = facts_of_manifest(read_manifest(model), model)
    points = decode_curve(facts, calibration_of_phone(read_phones()["Pixel 8"]), facts.max_context)
    assert [points[0][0], points[-1][0]] == [0, facts.max_context - 1]
    at = {
        int(asked): verdicts(check(model, "--phone", "Pixel 8", "--prompt-tokens", asked, "--json")[1])["Pixel 8"]
        for asked in ("32", "63")
    }
    rates = dict(points)
    for position in (32, 63):
        low, likely, high = at[position]["decode_tokens_per_s"]
        near = rates.get(position) or min(points, key=lambda point: abs(point[0] - position))[1]
        assert (near.low, near.likely, near.high) == pytest.approx((low, likely, high), rel=0.02)
    top = float(re.search(r'text-anchor="end">([\d,]+)</text>', text)[1].replace(",", ""))
    drawn = {name: re.search(rf'class="{name}" d="M([^"]+)"', text)[1].rstrip("Z") for name in ("band", "likely", "asked")}
    heights = {name: [float(corner.split()[1]) for corner in path.split("L")] for name, path in drawn.items()}

    def height(rate):
        return RATE_HEIGHT - BOTTOM - rate / top * (RATE_HEIGHT - TOP - BOTTOM)

    assert heights["likely"] == pytest.approx([height(rate.likely) for _, rate in points], abs=0.06)
    band = [height(rate.high) for _, rate in points] + [height(rate.low) for _, rate in reversed(points)]
    assert heights["band"] == pytest.approx(band, abs=0.06)
    assert heights["asked"] == pytest.approx([height(20)] * 2, abs=0.06)


def test_a_page_for_an_amount_of_dram_has_no_curve(check, model, tmp_path):
    check(model, "--dram", "6GB", "--html", tmp_path / "page.html")
    assert '<svg class="rate"' not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_name_in_the_page_is_text_and_nothing_else(check, model, tmp_path):
    phones = tmp_path / "mine.toml"
    phones.write_text(
        '[sources]\nx = "x"\n[[phone]]\nname = "<script>alert(1)</script>"\nyear = 2026\nos = "iOS"\nsoc = "Apple A15"\n'
        'dram_gib = { value = 6, source = "x", confidence = "high" }\n'
    )
    file = tmp_path / "page.html"
    check(model, "--phones-file", phones, "--phone", "<script>alert(1)</script>", "--html", file)
    assert "<script" not in file.read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" in Page(file.read_text(encoding="utf-8")).text


# --- fast, and without torch ---------------------------------------------------------------------------------------

TIMED = """
import json, sys, time
import mobile_export.cli
began = time.process_time()
code = mobile_export.cli.run(sys.argv[1:])
print(json.dumps([code, time.process_time() - began, sorted(sys.modules)]), file=sys.stderr)
"""


def test_it_answers_at_once_and_never_imports_torch(model, tmp_path):
    command = [sys.executable, "-c", TIMED, "check", str(model), "--phone", "all"]
    command += ["--max-memory", "5MiB", "--min-decode-rate", "20", "--html", str(tmp_path / "page.html"), "--json"]
    taken = []
    for _ in range(3):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        code, seconds, modules = json.loads(done.stderr.splitlines()[-1])
        assert code in (0, 1)
        assert len(json.loads(done.stdout)["verdicts"]) == len(read_phones())
        assert {name.split(".")[0] for name in modules} & {"torch", "numpy", "onnx", "onnxruntime", "executorch"} == set()
        taken.append(seconds)
    assert statistics.median(taken) < 0.3


def test_every_phone_and_every_change_of_a_deep_model_take_a_moment():
    """60 executions, 45 phones, nothing that fits: every candidate is judged for every phone."""
    facts = model_of(SMOLLM2_135M, 30, repeats=2, context=2048)
    limits = Limits(share=0.01, max_first_token_s=0.001, min_decode_tokens_per_s=1e4)
    recipes = [read_recipe(name) for name in packaged_recipes()]
    targets = [target_of_phone(phone) for phone in read_phones().values()]
    taken = []
    for _ in range(3):
        fresh = dataclasses.replace(facts)  # without what was worked out before
        began = time.process_time()
        tried = candidates(fresh, recipes)
        assert [cheapest_change(tried, target, limits, Use()) for target in targets] == [None] * len(targets)
        taken.append(time.process_time() - began)
    assert statistics.median(taken) < 0.1


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "check: no phone to check for; name one with --phone (`phones` lists them), or give --dram 6GB"),
        (("--phone", "pixel88"), "--phone pixel88: no such phone; did you mean 'Pixel 8' or 'Pixel 8a'"),
        (("--dram", "0GB"), "--dram 0GB: not between 256MB and 128GB; check the number and its unit"),
        (("--dram", "-6GB"), "--dram -6GB: not between 256MB and 128GB; check the number and its unit"),
        (("--dram", "3PB"), "--dram 3PB: not between 256MB and 128GB; check the number and its unit"),
        (("--dram", "six"), "--dram six: no number with a unit; write it like 6GB"),
        (("--dram", "6GB", "--share", "0"), "--share 0: not between 0 (exclusive) and 100%; check the number and its unit"),
        (("--dram", "6GB", "--max-memory", "3PB"), "--max-memory 3PB: not between 1 byte and 128 GiB; "),
        (("--dram", "6GB", "--max-memory", "512"), "--max-memory 512: no number with a unit; write it like 512MiB"),
        (("--phone", "Pixel 8", "--max-ttft", "0s"), "--max-ttft 0s: not between 0 (exclusive) and an hour; "),
        (("--phone", "Pixel 8", "--min-decode-rate", "0"), "--min-decode-rate 0: no rate of tokens; "),
        (("--phone", "Pixel 8", "--min-decode-rate", "nan"), "--min-decode-rate nan: no rate of tokens; "),
        (("--dram", "6GB", "--min-decode-rate", "20"), "--dram: nothing is known of the speed of an amount of DRAM; "),
        (("--dram", "6GB", "--recipe", "w8-fast"), "--recipe: "),
        (("--dram", "6GB", "--format", "onnx"), "--format: "),
        (("--dram", "6GB", "--packed-file"), "--packed-file: only ExecuTorch keeps one; leave it out"),
        (("--dram", "6GB", "--onnxruntime", "new"), "--onnxruntime new: no version; write it like 1.28"),
        (("--dram", "6GB", "--json", "--markdown"), "--markdown: --json prints one object; leave one of them out"),
    ],
)
def test_impossible_questions_are_usage_errors(fails, model, arguments, line):
    code, said = fails("check", model, *arguments)
    assert code == 2
    assert said.startswith(line)


def test_the_rates_of_a_profile_are_of_a_model_that_is_known(check, fails, model, tmp_path):
    held = json.loads((model / "manifest.json").read_text())
    rates = {"prefill_tokens_per_s": {"median": 900.0}, "decode_tokens_per_s": {"median": 50.0}}
    file = tmp_path / "profile.json"

    def write(sha256s):
        files = [{"sha256": sha256} for sha256 in sha256s]
        by_threads = [{"threads": 2, **rates}]
        lengths = {"prompt_tokens": 32, "new_tokens": 0}
        file.write_text(json.dumps({"files": files, **lengths, "by_threads": by_threads, "best_threads": 2}))

    write([one["sha256"] for one in held["files"]])
    asked = ("--phone", "Pixel 8", "--profile", file, "--prompt-tokens", 32, "--json")
    own = verdicts(check(model, *asked)[1])["Pixel 8"]
    assert own["decode_tokens_per_s"][1] == pytest.approx(50)
    other = verdicts(check(checkpoint("llama"), *asked, "--kv", "int8", "--profiled", model)[1])["Pixel 8"]
    assert other["decode_tokens_per_s"][1] == pytest.approx(50, rel=0.2)
    write(["00"])
    code, line = fails("check", model, "--phone", "Pixel 8", "--profile", file)
    assert code == 2
    assert line.startswith(f"--profile {file}: is of another artifact than the one that is checked; name that artifact with ")
    code, line = fails("check", model, "--phone", "Pixel 8", "--profile", file, "--profiled", model)
    assert (code, line) == (2, f"--profiled {model}: {file} is of other files; name the artifact it was measured with")
    code, line = fails("check", model, "--phone", "Pixel 8", "--profiled", model)
    assert (code, line) == (2, "--profiled: there is no profile it could belong to; give one with --profile")


def test_what_a_profiled_phone_says_of_its_dram_counts_and_it_need_not_be_named(check, fails, model, tmp_path):
    file = tmp_path / "profile.json"

    def write(**phone):
        told = {"phone": {"serial": "S1", "model": "Acme One", "dram_mib": 4096.0, **phone}}
        file.write_text(json.dumps({"calibration": CALIBRATION, **told}))

    def dram(name, *more):
        asked = verdicts(check(model, "--profile", file, "--json", "--share", "50%", *more)[1])[name]["answers"]
        (memory,) = [answer for answer in asked if answer["limit"] == "memory"]
        return memory["allowed"][1] / 2**20

    write()
    assert dram("Acme One, as profiled", "--min-decode-rate", "1") == 2048
    assert dram("Pixel 8", "--phone", "Pixel 8") == 2048
    assert dram("6 GB of DRAM", "--dram", "6GB") == 3072
    write(model=None)
    assert dram("S1, as profiled") == 2048
    write(dram_mib=None)
    assert dram("Pixel 8", "--phone", "Pixel 8") == 4096
    code, line = fails("check", model, "--profile", file)
    assert (code, line.split(";")[0]) == (2, "check: no phone to check for")


def test_a_profile_is_of_one_phone(fails, model, tmp_path):
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"calibration": CALIBRATION}))
    code, line = fails("check", model, "--phone", "Pixel 8", "--phone", "Pixel 9", "--profile", file)
    assert (code, line) == (2, "--profile: it is of one phone, and several are checked; check them one by one")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.onnx.data").write_bytes(b"x"), "model.onnx.data: SHA-256 "),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx: the manifest names it and it is not there"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not JSON: "),
        (lambda folder: (folder / "manifest.json").write_text('{"schema_version": 99}'), "schema_version 99"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json beside it"),
    ],
)
def test_a_damaged_artifact_is_refused(fails, model, tmp_path, damage, said):
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    code, line = fails("check", tmp_path / "model.onnx" if (tmp_path / "model.onnx").exists() else tmp_path, "--dram", "6GB")
    assert code == 3
    assert said in line


def test_what_is_not_there_or_too_long_is_refused(fails, model, tmp_path):
    assert fails("check", tmp_path / "none.pte", "--dram", "6GB")[0] == 3
    assert fails("check", tmp_path / "none", "--dram", "6GB")[0] == 3
    code, line = fails("check", model, "--dram", "6GB", "--context", "999999")
    assert (code, line.split(";")[0].split(", ")[0]) == (3, "--context: 999999 positions")
    code, line = fails("check", checkpoint("llama"), "--dram", "6GB", "--format", "gguf")
    assert (code, line) == (2, "--format gguf: no such format; write pte, onnx or coreml")
    code, line = fails("check", checkpoint("llama"), "--dram", "6GB", "--kv", "int2")
    assert (code, line) == (2, "--kv int2: no such cache; write float32 or int8")
    code, line = fails("check", written("rwkv4"), "--dram", "6GB", "--format", "coreml")
    assert (code, line.split("; ")[1]) == (3, "use `pte` or `onnx`")
    code, line = fails("check", model, "--dram", "6GB", "--html", tmp_path / "none" / "page.html")
    assert code == 4
    assert line == f"--html {tmp_path / 'none' / 'page.html'}: cannot be written: No such file or directory; name another place"
