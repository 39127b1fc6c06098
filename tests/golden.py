"""Writes tests/golden/: what the apps' Kotlin and Swift must give alike, by this repository's own Python.

    python tests/golden.py              anew from the stored manifests, in a second
    python tests/golden.py --export     the manifests, too: exports tiny models, minutes

Numbers are JSON numbers, an interval is [low, likely, high]. test_golden.py holds the files against the code.

    manifests/NAME.json  manifest.json as the exporters write it
    memory.json          manifest, context, prompt chunk -> every term, bytes
    device.json          manifest, phone, limits -> outcome, and the line `check` says of each limit
    chat.json            strings of a chat template, conversation -> prompt
    statistics.json      runs at one number of threads -> what profile.json says of them
    profile.json         a measurement -> the text of a runner's result
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from carried import MANIFESTS
from chat_templates import KNOWN
from fake_measurement import MEASURED

from mobile_export.budget.facts import ModelFacts, facts_of_manifest
from mobile_export.budget.interval import Interval, exactly
from mobile_export.budget.memory import estimate_memory
from mobile_export.budget.plain import ends, plain_memory
from mobile_export.budget.report import reason
from mobile_export.budget.terms import MIB
from mobile_export.budget.verdict import Limits, Target, Use, judge
from mobile_export.checkpoint.chat_template import as_strings
from mobile_export.manifest import read_manifest
from mobile_export.measure.measurement import MEASUREMENT, Measurement
from mobile_export.measure.series import summary

GOLDEN = Path(__file__).parent / "golden"
GIB = 2**30

# --- manifests -----------------------------------------------------------------------------------------------------------

SIZES = ("--max-context", "64", "--max-prompt", "8")
FAST = ("--recipe", "w4-fast")
EXPORTS: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> checkpoint, command
    "llama-w4-fast": ("llama", ("pte", *SIZES, *FAST)),
    "untied-w8-core": ("untied-chatty", ("pte", *SIZES, "--recipe", "w8-fast", "--attention", "core", "--no-verify")),
    "fp32": ("llama", ("pte", *SIZES, "--recipe", "fp32", "--no-verify")),
    "shared-int8-kv": ("mobilellm", ("pte", *SIZES, *FAST, "--kv", "int8", "--no-verify")),
    "gemma3-windows": ("gemma3", ("pte", *SIZES, *FAST, "--no-verify")),
    "lfm2-convolutions": ("lfm2", ("pte", *SIZES, *FAST, "--no-verify")),
    "rwkv4-state": ("rwkv4", ("pte", *SIZES, *FAST, "--no-verify")),
    "coreml-in-pte": ("llama", ("pte", *SIZES, *FAST, "--backend", "coreml", "--no-verify")),
    "coreml-stock": ("untied-chatty", ("coreml", *SIZES[:2], *FAST, "--no-verify")),
    "coreml-functions": ("mobilellm", ("coreml", *SIZES, *FAST, "--layout", "functions", "--no-verify")),
    "onnx": ("llama", ("onnx", *SIZES[:2], *FAST, "--no-verify")),
}


def write_checkpoint(kind: str, folder: Path) -> Path:
    """A tiny checkpoint of some kind."""
    from tiny_checkpoints import write_llama, write_mobilellm
    from tiny_families import write_family

    folder.mkdir()
    match kind:
        case "llama":
            return write_llama(folder)
        case "untied-chatty":
            (folder / "chat_template.jinja").write_text(KNOWN["zephyr"].source)
            return write_llama(folder, tied=False)
        case "mobilellm":
            return write_mobilellm(folder, layer_sharing=True, form="bin")
    return write_family(folder, kind)


def export_manifests(names: Sequence[str]) -> None:
    """Export some models of EXPORTS, and keep their manifests."""
    from mobile_export.cli import run

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as room:
        os.chdir(room)  # a manifest names its source as the user did
        try:
            for name in names:
                kind, command = EXPORTS[name]
                if not Path(kind).is_dir():
                    write_checkpoint(kind, Path(kind))
                assert run([command[0], kind, "--out", name, *command[1:]]) == 0
                _write(f"manifests/{name}.json", json.loads(Path(name, "manifest.json").read_text()))
        finally:
            os.chdir(before)


def facts(name: str) -> ModelFacts:
    """What a budget knows of a stored manifest."""
    with tempfile.TemporaryDirectory() as room:
        path = Path(room, "manifest.json")
        path.write_bytes((MANIFESTS / f"{name}.json").read_bytes())
        return facts_of_manifest(read_manifest(Path(room)), Path(room))


# --- memory and verdict --------------------------------------------------------------------------------------------------


def memory() -> Iterator[dict[str, Any]]:
    """Each model as exported; two also with other contexts, chunks and a packed file."""
    asked: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in EXPORTS if name != "onnx"]
    asked += [("llama-w4-fast", {"context": 4096, "prompt_chunk": 128}), ("llama-w4-fast", {"packed_file": True})]
    asked += [("untied-w8-core", {"context": 2048}), ("untied-w8-core", {"packed_file": True})]
    asked += [("gemma3-windows", {"context": 512}), ("shared-int8-kv", {"context": 1000, "prompt_chunk": 100})]
    asked += [("coreml-functions", {"prompt_chunk": 8, "context": 48})]
    for name, given in asked:
        use = {"context": None, "prompt_chunk": None, "packed_file": False, **given}
        yield {"manifest": f"{name}.json", **use, **plain_memory(estimate_memory(facts(name), **use))}


PHONES: dict[str, tuple[Target, Limits]] = {
    "plenty": (Target("", exactly(8 * GIB)), Limits()),
    "a share that is too small": (Target("", exactly(8 * GIB)), Limits(share=0.0001)),
    "a share that may do": (Target("", exactly(256 * MIB)), Limits(share=0.06)),
    "just what may be used": (Target("", exactly(6 * GIB)), Limits(max_memory_bytes=15_000_000)),
    "less than is needed": (Target("", exactly(6 * GIB)), Limits(max_memory_bytes=1_000_000)),
    "an app's limit": (Target("", exactly(4 * GIB), app_limit_bytes=Interval(900 * MIB, 1200 * MIB, 1500 * MIB)), Limits()),
    "a small app's limit": (Target("", exactly(4 * GIB), app_limit_bytes=exactly(4 * MIB)), Limits()),
    "a system that keeps most": (
        Target("", Interval(700 * MIB, 720 * MIB, 740 * MIB), reserve_bytes=Interval(690 * MIB, 700 * MIB, 710 * MIB)),
        Limits(share=0.5),
    ),
    "a system that leaves nothing": (Target("", exactly(512 * MIB), reserve_bytes=exactly(510 * MIB)), Limits()),
    "all at once": (
        Target("", exactly(6 * GIB), app_limit_bytes=exactly(3 * GIB), reserve_bytes=Interval(GIB, 2 * GIB, 3 * GIB)),
        Limits(share=0.25),
    ),
}


def device() -> Iterator[dict[str, Any]]:
    """Three models on every phone."""
    for model in ("llama-w4-fast", "shared-int8-kv", "coreml-stock"):
        for name, (target, limits) in PHONES.items():
            verdict = judge(facts(model), target, limits, Use())
            limit, reserve = target.app_limit_bytes, target.reserve_bytes
            answers = [
                {
                    "limit": answer.limit,
                    "needed_bytes": ends(answer.needed),
                    "allowed_bytes": ends(answer.allowed),
                    "outcome": answer.outcome,
                    "reason": reason(answer),
                }
                for answer in verdict.answers
            ]
            yield {
                "name": name,
                "manifest": f"{model}.json",
                "dram_bytes": ends(target.dram_bytes),
                "app_limit_bytes": limit and ends(limit),
                "reserve_bytes": reserve and ends(reserve),
                "share": limits.share,
                "max_memory_bytes": limits.max_memory_bytes,
                "outcome": verdict.outcome,
                "answers": answers,
            }


# --- chat ----------------------------------------------------------------------------------------------------------------

SAID = (
    ["Where is the sea?"],
    ["1 + 1 = ?", "2", "And \"2\" + '2'?"],
    ["a", "b\n\nc", "größer\tals <s>?", "好 🙂 \\n", "</s>{{ x }}"],
)
SYSTEM = 'You are brief.\nUse no "quotes".'


def chat() -> Iterator[dict[str, Any]]:
    """Known templates on a few conversations, with and without a system text."""
    for name, template in KNOWN.items():
        strings = as_strings(template)
        assert strings, name
        systems = (None, SYSTEM) if strings.system else (None,)
        said = [
            {"system": system, "turns": turns, "prompt": template.render(turns, system)} for system in systems for turns in SAID
        ]
        yield {"name": name, "chat": dataclasses.asdict(strings), "conversations": said}


# --- measurements --------------------------------------------------------------------------------------------------------


def measured(**changes: Any) -> Measurement:
    return MEASUREMENT.validate_python({**MEASURED, **changes})


RESIDENT = {"rss_anon_kib": 1000, "rss_file_kib": 70_001, "pss_kib": 65_537}
LOGITS = {"tokens": [3, 4, 5], "count": 96, "argmax": 17, "sum": -12.375, "values": [0.1, -1.5, 1e-07, 2.0]}
STATISTICS: dict[str, list[Measurement]] = {
    "one run": [measured()],
    "two runs": [measured(load_s=0.25, threads=4), measured(load_s=0.5, init_s=0.3, decode_s=[[0.25, 0.5]], threads=4)],
    "three runs of two sequences": [
        measured(
            threads=2,
            init_s=seconds,
            prefill_s=[seconds / 3, seconds / 7],
            decode_s=[[seconds / (2 + i) for i in range(70)], [seconds / (3 + i * i) for i in range(50)]],
            at_start=RESIDENT,
            after_load={**RESIDENT, "rss_anon_kib": 1003 + i},
            after_init={**RESIDENT, "rss_anon_kib": 40_000 - 7 * i},
            at_end={"rss_anon_kib": 50_001, "rss_file_kib": 70_000 + 13 * i, "pss_kib": 110_000 + i},
            peak_rss_kib=130_000 + 1001 * i,
        )
        for i, seconds in enumerate((0.3, 0.1, 0.7))
    ],
}
WRITTEN: dict[str, Measurement] = {
    "a usual one": measured(threads=4, backends=["XnnpackBackend"], logits=LOGITS),
    "floats at the edges of what is written without exponent": measured(
        load_s=0.0001,
        init_s=0.00009999,
        first_token_s=1.0,
        prefill_s=[0.1 + 0.2, 5e-05, 1e15, 9007199254740993.0, 1e16, 1.5e16],
        decode_s=[[1e-06, 2.0**-44, 1 / 3, 100.0, 123456789.125]],
    ),
    "nothing but the first prompt": measured(prefill_s=[], decode_s=[]),
    "texts": measured(runtime='ExecuTorch "1.5.1" \\ naïve 好\t\u007f', backends=["a", "é/\n"], logits=LOGITS),
}


def statistics() -> Iterator[dict[str, Any]]:
    """Runs, and what they give together."""
    for name, runs in STATISTICS.items():
        plain = [dataclasses.asdict(run) for run in runs]
        yield {"name": name, "measurements": plain, "at_threads": dataclasses.asdict(summary(runs))}


def profile() -> Iterator[dict[str, Any]]:
    """Measurements as a runner prints them: fields in order, ASCII, floats as short as they read back."""
    for name, measurement in WRITTEN.items():
        plain = dataclasses.asdict(measurement)
        yield {"name": name, "measurement": plain, "text": json.dumps(plain) + "\n"}


# --- files ---------------------------------------------------------------------------------------------------------------

FILES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "memory.json": memory,
    "device.json": device,
    "chat.json": chat,
    "statistics.json": statistics,
    "profile.json": profile,
}


def as_text(value: object) -> str:
    """A file's text: short lists and objects on one line."""
    return _indented(value, 0) + "\n"


def _indented(value: object, depth: int) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= 120 - 2 * depth or not isinstance(value, dict | list):
        return line
    inside = "  " * (depth + 1)
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_indented(held, depth + 1)}" for key, held in value.items()]
    else:
        parts = [_indented(held, depth + 1) for held in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return begin + "\n" + ",\n".join(inside + part for part in parts) + "\n" + "  " * depth + end


def _write(name: str, value: object) -> None:
    path = GOLDEN / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_text(value), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--export"]:
        export_manifests(arguments[1:] or list(EXPORTS))
    for name, cases in FILES.items():
        _write(name, list(cases()))


if __name__ == "__main__":
    main(sys.argv[1:])
