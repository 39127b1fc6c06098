"""Table: which versions of onnxruntime run our ONNX models, and in which a shared block is packed once.

Each version is installed by pip into a folder of --work and loaded from there, in a process of its own for each model,
one thread. Its logits are held against those of the onnxruntime of this environment; and since those stray wherever
another kernel sums in another order (docs/decisions/0002), `mobile-export verify` decides, run in each version that the
manifest promises.

    python -m benchmarks.onnx_versions --work work/onnx-versions
    python -m benchmarks.onnx_versions --work work/onnx-versions --versions 1.24.4 1.28.0

This is what minimum_onnxruntime and one_copy_onnxruntime of the manifest rest on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.export_child import mobile_export_program, onnx_command, run_export
from benchmarks.json_child import ChildError, run_for_json
from benchmarks.machine import ONNX_PACKAGES, describe_machine
from benchmarks.measure_onnx import FILES, OnnxMeasurement, environment_of, measure_in_child
from benchmarks.onnx_peer import OURS, folder_of
from benchmarks.onnx_sharing import MAX_EXTRA_DIRTY_MB
from benchmarks.onnx_table import DECODE_CPU, DIRTY_AFTER_LOAD, dirty_mb_above
from benchmarks.report import Figure, add_report_options, at_most, finish, print_table, spread
from benchmarks.rounds import as_json, in_turn, say
from mobile_export.errors import EXIT_NO, EXIT_YES
from mobile_export.manifest import OnnxGraph, read_manifest

BASE, SHARED = "w4-fast", "w4-fast, layer-shared"
MODELS = (*OURS, SHARED)


@dataclass(frozen=True)
class Outcome:
    """What one version made of one model.

    refusal: the end of what it said, where it did not load or run it; else empty.
    logits_off_percent: largest difference to this environment's logits, of the largest logit.
    other_tokens: positions whose likeliest token is another one, of `positions`.
    """

    measured: OnnxMeasurement | None
    refusal: str = ""
    logits_off_percent: float = 0.0
    other_tokens: int = 0
    positions: int = 0


Outcomes = dict[tuple[str, str], list[Outcome]]  # version and model -> one a round
Failures = dict[tuple[str, str], list[str]]  # version and model -> checks of the verification that failed


def main() -> int:
    """Install and export what is missing, measure in turn, print the tables, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the versions and models; kept, and used again")
    parser.add_argument("--checkpoint", default="smollm2-135m", help="one that stores each block once")
    parser.add_argument(
        "--versions", nargs="+", default=["1.22.1", "1.23.2", "1.24.4", "1.26.0", "1.27.0", "1.28.0"], metavar="VERSION"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    add_report_options(parser, runs=3)
    asked = parser.parse_args()
    machine = describe_machine(ONNX_PACKAGES)
    print(machine)
    work, installed = asked.work.resolve(), version("onnxruntime")
    libraries = {number: install(work, number) for number in asked.versions}
    folders = {name: export_missing(work, asked.checkpoint, name) for name in asked.models}
    references = {name: folder / "logits.npy" for name, folder in folders.items()}
    for name, file in references.items():
        measure_in_child(folders[name], threads=1, logits=file)
    tries = {
        f"onnxruntime {number}, {name}": (number, name) for name in asked.models for number in (*asked.versions, installed)
    }

    def measure(key: str, _: int) -> Outcome:
        number, name = tries[key]
        return try_version(folders[name], libraries.get(number), references[name])

    by_key = in_turn(list(tries), [1], asked.runs, measure)
    outcomes = {tries[key]: rounds for key, rounds in by_key[1].items()}
    graphs = {name: graph for name, folder in folders.items() if (graph := read_manifest(folder).onnx)}
    failures = {
        (number, name): verify(folders[name], asked.checkpoint, libraries.get(number))
        for number, name in outcomes
        if numbers_of(number) >= numbers_of(graphs[name].minimum_onnxruntime)
    }
    print_outcomes(outcomes, failures, [*asked.versions, installed], asked.models, markdown=asked.markdown)
    measured = {"rounds": as_json(by_key), "failed checks": {", ".join(key): failed for key, failed in failures.items()}}
    return finish(asked, machine, measured, judge(outcomes, failures, graphs))


def install(work: Path, number: str) -> Path:
    """The folder onnxruntime of a version is installed in, by pip where it is not there yet."""
    library = work / f"onnxruntime-{number}"
    if not (library / "onnxruntime").is_dir():
        say(f"installing onnxruntime {number}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(library)]
        run_export([*pip, f"onnxruntime=={number}"])
    return library


def export_missing(work: Path, checkpoint: str, name: str) -> Path:
    """The folder of a model's export, made where it is not there yet."""
    folder = folder_of(work, name)
    if not (folder / FILES[0]).is_file():
        say(f"exporting {name}")
        recipe, options = OURS[BASE] if name == SHARED else OURS[name]
        schedule = "immediate" if name == SHARED else None
        run_export(onnx_command(checkpoint, folder, recipe=recipe, schedule=schedule, options=options))
    return folder


def try_version(folder: Path, library: Path | None, reference: Path) -> Outcome:
    """Measure a folder in one version; that it does not run there is a finding, too."""
    logits = reference.with_name("logits-tried.npy")
    try:
        measured = measure_in_child(folder, threads=1, library=library, logits=logits)
    except ChildError as refused:
        return Outcome(None, refusal=refused.in_short())
    want, got = np.load(reference), np.load(logits)
    off_percent = 100 * float(np.abs(got - want).max() / np.abs(want).max())
    others = int((got.argmax(axis=1) != want.argmax(axis=1)).sum())
    return Outcome(measured, logits_off_percent=off_percent, other_tokens=others, positions=len(want))


def verify(folder: Path, checkpoint: str, library: Path | None) -> list[str]:
    """Checks of `mobile-export verify` that fail in one version."""
    command = [*mobile_export_program(), "verify", str(folder), "--against", checkpoint, "--json"]
    say(f"verifying {folder.name} in {library.name if library else 'this environment'}")
    try:
        found = run_for_json(command, environment_of(library), accepted=(EXIT_YES, EXIT_NO))
    except ChildError as refused:
        return [refused.in_short()]
    return [check["name"] for check in found["checks"] if not check["passed"]]


def print_outcomes(
    outcomes: Outcomes, failures: Failures, numbers: Sequence[str], models: Sequence[str], *, markdown: bool
) -> None:
    """Models against versions: whether each runs, how fast, and what it keeps; then what the refusals said."""
    tables: tuple[tuple[str, Callable[[tuple[str, str]], str]], ...] = (
        (
            "`mobile-export verify`; a version below the manifest's minimum is not asked",
            lambda key: _verdict(failures.get(key)),
        ),
        (
            "Logits against this environment's: largest difference, of the largest logit; other likeliest tokens",
            lambda key: _sameness(outcomes[key][0]),
        ),
        ("Decode, tokens/CPU s, 1 thread", lambda key: _measured(outcomes[key], DECODE_CPU.value)),
        ("Dirty after load, MiB", lambda key: _measured(outcomes[key], DIRTY_AFTER_LOAD.value)),
    )
    for title, cell in tables:
        rows = [(name, *(cell((number, name)) for number in numbers)) for name in models]
        print_table(title, ("", *numbers), rows, markdown=markdown)
    said = {", ".join(key): rounds[0].refusal for key, rounds in outcomes.items() if rounds[0].refusal}
    said |= {", ".join(key): "; ".join(failed) for key, failed in failures.items() if failed}
    if said:
        print_table("Refusals and failed checks", ("", "said"), list(said.items()), markdown=markdown)


def _verdict(failed: list[str] | None) -> str:
    return "" if failed is None else "FAILED" if failed else "passed"


def _sameness(outcome: Outcome) -> str:
    if outcome.measured is None:
        return "refused"
    if not outcome.logits_off_percent:
        return "same"
    return f"{outcome.logits_off_percent:.2g} %; {outcome.other_tokens} of {outcome.positions}"


def _measured(rounds: Sequence[Outcome], value: Callable[[OnnxMeasurement], float]) -> str:
    values = [value(outcome.measured) for outcome in rounds if outcome.measured]
    return spread(values) if values else ""


def judge(outcomes: Outcomes, failures: Failures, graphs: Mapping[str, OnnxGraph]) -> list[Figure]:
    """What the manifests state, in every version that was tried and is new enough."""
    figures = [at_most(f"{name}, {number}: failed checks", len(failed), 0, "") for (number, name), failed in failures.items()]
    for number in dict.fromkeys(number for number, _ in outcomes) if {BASE, SHARED} <= graphs.keys() else ():
        if numbers_of(number) >= numbers_of(graphs[SHARED].one_copy_onnxruntime):
            shared, base = ([o.measured for o in outcomes[number, name] if o.measured] for name in (SHARED, BASE))
            if not (shared and base):  # refused: said above
                continue
            extra_mb = max(dirty_mb_above(shared, base))
            figures.append(at_most(f"{SHARED}, {number}: dirty above {BASE} after load", extra_mb, MAX_EXTRA_DIRTY_MB, "MB"))
    return figures


def numbers_of(release: str) -> tuple[int, ...]:
    """Major and minor: (1, 24) of "1.24" and of "1.24.4"."""
    return tuple(int(part) for part in release.split(".")[:2])


if __name__ == "__main__":
    sys.exit(main())
