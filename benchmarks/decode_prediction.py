"""Table: how fast `check` predicts models to be on this machine, against what our C++ runner measured.

Two calibrations, neither of which knows the model that is predicted: one profile of another model (SmolLM2-135M's for all
others, MobileLLM-125M's for SmolLM2-135M itself), and the runner's micro-benchmark, which runs no model. Models are taken in
turn, A B C, C B A ..., the micro-benchmark once before each round, each in a process of its own.

    python -m benchmarks.decode_prediction --work work/decode                     every case; exports once, 5 minutes
    python -m benchmarks.decode_prediction --work work/decode --only LS shape      those with one of these words in their name
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.export_child import pte_command, run_export
from benchmarks.machine import describe_machine
from benchmarks.real_shapes import SHAPES, write_real_shape
from benchmarks.report import Figure, add_report_options, at_least, at_most, finish, print_table
from benchmarks.rounds import as_json, say
from benchmarks.runner import SECONDS, decode_rate
from mobile_export.budget.calibration import Calibration, ProfileCalibration, calibration_given
from mobile_export.budget.facts import ModelFacts, facts_of_manifest
from mobile_export.budget.latency import predict_rates
from mobile_export.budget.profiled import USUAL, ProfiledRates, calibration_of_profile
from mobile_export.manifest import read_manifest
from mobile_export.measure.build import build_runner
from mobile_export.measure.launch import launch
from mobile_export.measure.machine_speed import MachineSpeed, measure_speed, typical
from mobile_export.measure.measurement import Job, Measurement
from mobile_export.units import counted

MAX_ERROR_PERCENT = 20.0
MIN_MODELS = 6
SEQUENCES = 3  # a process: a prompt each, so that one slow moment of the machine is not all there is of it


@dataclass(frozen=True)
class Case:
    """A model and what is run of it. source: a checkpoint, a name of models.json, or a shape and its blocks."""

    name: str
    source: str
    options: tuple[str, ...] = ()
    prompt_tokens: int = 128
    new_tokens: int = 32

    @property
    def export(self) -> str:
        """Folder of the export: cases that differ in the prompt alone share one."""
        return "_".join((self.source, *self.options)).replace("/", "-").replace(" ", "-").replace("--", "")


OWN, OTHER = "SmolLM2-135M w4-fast", "MobileLLM-125M w4-fast"  # whose profile foretells the others, and that one
LS = ("--schedule", "immediate")
CASES = (
    Case(OWN, "smollm2-135m"),
    Case("SmolLM2-135M w4-fast LS", "smollm2-135m", LS),
    Case("SmolLM2-135M w8", "smollm2-135m", ("--recipe", "w8-fast")),
    Case("SmolLM2-135M w4-fast, int8 KV", "smollm2-135m", ("--kv", "int8")),
    Case("SmolLM2-135M w4-fast, prompt 440", "smollm2-135m", (), 440),
    Case(OTHER, "facebook/MobileLLM-125M"),
    Case("MobileLLM-125M w4-fast LS", "facebook/MobileLLM-125M", LS),
    Case("MobileLLM-125M w8 LS", "facebook/MobileLLM-125M", (*LS, "--recipe", "w8-fast")),
    Case("MobileLLM-350M's shape, 16 blocks, w4-fast", "mobilellm-350m 16"),
    Case("MobileLLM-350M's shape, 16 blocks, w4-fast LS", "mobilellm-350m 16", LS),
    Case("OPT-125M w4-fast", "facebook/opt-125m"),
    Case("Pythia-160M w4-fast", "EleutherAI/pythia-160m"),
)


@dataclass(frozen=True)
class Prediction:
    """Of one case at one number of threads, tokens a second and seconds: predicted likely, and measured (medians)."""

    case: str
    threads: int
    calibration: str
    decode_predicted: float
    decode_measured: float
    first_token_predicted_s: float
    prefill_measured_s: float

    @property
    def decode_off_percent(self) -> float:
        return 100 * (self.decode_predicted / self.decode_measured - 1)

    @property
    def prefill_off_percent(self) -> float:
        """Of the rate: more is faster than measured."""
        return 100 * (self.prefill_measured_s / self.first_token_predicted_s - 1)


def main() -> int:
    """Export what is missing, measure in turn, predict each from what is not itself, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the exports; kept, and used again")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="only cases with one of these in their name")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--export", action="store_true", help="export, and measure nothing")
    add_report_options(parser, runs=5)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    chosen = [case for case in CASES if case.name in (OWN, OTHER) or any(word in case.name for word in asked.only)]
    folders = {case.name: exported(case, asked.work.resolve()) for case in chosen}
    if asked.export:
        return 0
    runner = build_runner()
    speeds: dict[int, list[MachineSpeed]] = {count: [] for count in asked.threads}
    measured: dict[int, dict[str, list[Measurement]]] = {count: {case.name: [] for case in chosen} for count in asked.threads}
    for number in range(asked.runs):
        for count in asked.threads:
            say(f"round {number + 1} of {asked.runs}, {counted(count, 'thread')}")
            speeds[count].append(measure_speed(runner, count, processes=1))
            for case in chosen if number % 2 == 0 else reversed(chosen):
                job = Job(folders[case.name] / "model.pte", count, case.prompt_tokens, case.new_tokens, sequences=SEQUENCES)
                measured[count][case.name].append(launch([str(runner)], job, timeout_s=SECONDS))
    facts = {name: facts_of_manifest(read_manifest(folder), folder) for name, folder in folders.items()}
    found = [
        prediction
        for count in asked.threads
        for prediction in predict(chosen, facts, measured[count], typical(speeds[count]), count)
    ]
    print_predictions(found, chosen, asked.threads, markdown=asked.markdown)
    print_speeds({count: typical(runs) for count, runs in speeds.items()}, markdown=asked.markdown)
    held = {
        "predictions": [asdict(one) for one in found],
        "speeds": {count: [asdict(run) for run in runs] for count, runs in speeds.items()},
        "measurements": as_json(measured),
    }
    return finish(asked, machine, held, judge(found))


def exported(case: Case, work: Path) -> Path:
    """The folder of a case's export, made where it is not there yet."""
    folder = work / case.export
    if (folder / "manifest.json").is_file():
        return folder
    checkpoint = case.source
    if checkpoint != "smollm2-135m":
        checkpoint = str(work / "checkpoints" / case.source.replace("/", "-").replace(" ", "-"))
        if not (Path(checkpoint) / "config.json").is_file():
            shape, _, blocks = case.source.partition(" ")
            if blocks:
                write_real_shape(SHAPES[shape], int(blocks), Path(checkpoint))
            else:
                run_export([sys.executable, "-m", "benchmarks.random_checkpoint", case.source, checkpoint])
    say(f"exporting {case.name}")
    recipe = case.options[case.options.index("--recipe") + 1] if "--recipe" in case.options else "w4-fast"
    rest = [option for option in case.options if option not in ("--recipe", recipe)]
    run_export([*pte_command(checkpoint, folder, recipe=recipe), *rest])
    return folder


def predict(
    cases: Sequence[Case],
    facts: Mapping[str, ModelFacts],
    measured: Mapping[str, Sequence[Measurement]],
    speed: MachineSpeed,
    threads: int,
) -> list[Prediction]:
    """Each case by each calibration."""
    benchmark = calibration_given("micro-benchmark", ProfileCalibration.model_validate(speed.calibration()), "micro-benchmark")
    profiles = {name: profile_calibration(facts[name], measured[name]) for name in (OWN, OTHER)}
    found = []
    for case in cases:
        runs = measured[case.name]
        decode, prefill_s = statistics.median(map(decode_rate, runs)), statistics.median(map(prefill_seconds, runs))
        other = profiles[OTHER if case.export == cases[0].export else OWN]
        for name, calibration in (("profile", other), ("micro-benchmark", benchmark)):
            position = case.prompt_tokens + case.new_tokens // 2
            rates = predict_rates(facts[case.name], calibration, position=position, prompt_tokens=case.prompt_tokens)
            first_s = rates.first_token_s.likely
            found.append(Prediction(case.name, threads, name, rates.decode_tokens_per_s.likely, decode, first_s, prefill_s))
    return found


def profile_calibration(facts: ModelFacts, runs: Sequence[Measurement]) -> Calibration:
    """What `check --profile` makes of a profile with these runs."""
    rates: dict[str, Any] = {
        "threads": runs[0].threads,
        "decode_tokens_per_s": {"median": statistics.median(map(decode_rate, runs))},
        "prefill_tokens_per_s": {"median": runs[0].prompt_tokens / statistics.median(map(prefill_seconds, runs))},
    }
    lengths = {"prompt_tokens": runs[0].prompt_tokens, "new_tokens": len(runs[0].decode_s[0])}
    profile = ProfiledRates.model_validate({**lengths, "by_threads": [rates], "best_threads": runs[0].threads})
    return calibration_of_profile(Path("profile.json"), profile, facts, USUAL)


def prefill_seconds(measured: Measurement) -> float:
    return statistics.median(measured.prefill_s)


def print_predictions(found: Sequence[Prediction], cases: Sequence[Case], threads: Sequence[int], *, markdown: bool) -> None:
    """A table for each number of threads: measured, then predicted from the profile and from the micro-benchmark."""
    for count in threads:
        rows = []
        for case in cases:
            own, bench = (one for one in found if one.case == case.name and one.threads == count)
            rows.append(
                (
                    case.name,
                    f"{own.decode_measured:.1f}",
                    *(f"{one.decode_predicted:.1f} ({one.decode_off_percent:+.0f} %)" for one in (own, bench)),
                    f"{1e3 * own.prefill_measured_s:.0f}",
                    *(f"{1e3 * one.first_token_predicted_s:.0f} ({one.prefill_off_percent:+.0f} %)" for one in (own, bench)),
                )
            )
        columns = ("model", "decode, tokens/s", "by a profile", "by the micro-benchmark")
        columns += ("prompt, ms", "by a profile", "by the micro-benchmark")
        print_table(f"Predicted speed, {counted(count, 'thread')}", columns, rows, markdown=markdown)


def print_speeds(speeds: Mapping[int, MachineSpeed], *, markdown: bool) -> None:
    """What the micro-benchmark made of this machine."""
    calibrations = {count: speed.calibration() for count, speed in speeds.items()}
    names = next(iter(calibrations.values()))
    rows = [(name, *(f"{values[name]:.1f}" for values in calibrations.values())) for name in names]
    print_table("The micro-benchmark", ("", *(counted(count, "thread") for count in speeds)), rows, markdown=markdown)


def judge(found: Sequence[Prediction]) -> list[Figure]:
    """The figures the project promises."""
    figures = [at_least("cases", len({one.case for one in found}), MIN_MODELS, "")]
    for threads in dict.fromkeys(one.threads for one in found):
        for calibration in ("profile", "micro-benchmark"):
            some = [one for one in found if (one.threads, one.calibration) == (threads, calibration)]
            at = f"by {calibration}, {counted(threads, 'thread')}, worst case"
            figures.append(at_most(f"decode {at}", max(abs(one.decode_off_percent) for one in some), MAX_ERROR_PERCENT, "%"))
            figures.append(at_most(f"prompt {at}", max(abs(one.prefill_off_percent) for one in some), MAX_ERROR_PERCENT, "%"))
    return figures


if __name__ == "__main__":
    sys.exit(main())
