"""Table: what the MobileLLM paper measured of layer sharing on an iPhone 13, reproduced on this machine by our C++ runner.

MobileLLM-125M's shape with random weights, which cost what trained ones do: base (30 blocks), layer-shared (each run twice)
and unshared (60 blocks). Each is exported where its folder in --work lacks it and measured in a process of its own, in turn:
A B C, C B A ... The paper's ratios to its base stand beside ours, and what `check` predicts of memory beside what was measured.

    python -m benchmarks.paper_table --work work/paper
    python -m benchmarks.paper_table --work work/paper --recipe w8-fast      the paper's own width of weights

The paper ran Apple's GPU (ExecuTorch's MPS backend), we an XNNPACK on a CPU: the ratios compare, the times do not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.export_child import pte_command, run_export
from benchmarks.machine import describe_machine
from benchmarks.report import Figure, add_report_options, at_most, finish, print_table
from benchmarks.rounds import Row, as_json, compare, print_comparison, say
from benchmarks.runner import ROWS, decode_rate, dirty_at_end, measured_in_turn
from benchmarks.sharing import BASE, SHARED, UNSHARED, export_missing
from mobile_export.budget.facts import facts_of_manifest
from mobile_export.budget.interval import total
from mobile_export.budget.memory import estimate_memory
from mobile_export.budget.pte_memory import PROCESS, tied_source_bytes
from mobile_export.budget.terms import MIB
from mobile_export.manifest import read_manifest
from mobile_export.measure.build import build_runner
from mobile_export.measure.measurement import Job, Measurement
from mobile_export.units import counted

MODEL = "facebook/MobileLLM-125M"
PAPER_MS = {BASE: (39.2, 1361.7, 15.6), SHARED: (43.6, 1388.2, 16.0), UNSHARED: (68.6, 3347.7, 29.0)}  # load, init, execute
PAPER_ROWS = (
    Row[Measurement]("load, ms", lambda m: 1e3 * m.load_s, 3),
    Row[Measurement]("init, ms", lambda m: 1e3 * m.init_s, 0),
    Row[Measurement]("execute, ms a token", lambda m: 1e3 / decode_rate(m), 2),
)
MAX_INIT_RATIO = 1.15
MAX_MEMORY_ERROR_PERCENT = 5.0


@dataclass(frozen=True)
class Predicted:
    """MiB above the runner itself: most dirty and most resident, as `check` has them from the manifest.

    The resident ones with every page of the table, which a long text touches and the few tokens of this benchmark do not.
    """

    dirty_mib: float
    resident_mib: float


def main() -> int:
    """Export what is missing, measure in turn, print the tables, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints and exports; kept, and used again")
    parser.add_argument("--recipe", default="w4-fast")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    add_report_options(parser, runs=7)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    folders = exported(asked.work.resolve(), asked.recipe)
    runner = [str(build_runner())]
    ways = {name: (runner, Job(folder / "model.pte")) for name, folder in folders.items()}
    by_threads = measured_in_turn(ways, asked.threads, asked.runs)
    predicted = {name: predict(folder) for name, folder in folders.items()}
    for threads, runs in by_threads.items():
        title = f"{MODEL}, {asked.recipe}, {counted(threads, 'thread')}: prompt 128, 64 new tokens, context 512"
        rows = (PAPER_ROWS[0], *ROWS[1:])
        print_comparison(f"{title}; median (least to largest)", rows, runs, BASE, markdown=asked.markdown)
    print_ratios(by_threads, markdown=asked.markdown)
    print_memory(predicted, by_threads[asked.threads[0]], markdown=asked.markdown)
    held = {"predicted": {name: asdict(one) for name, one in predicted.items()}, "measured": as_json(by_threads)}
    return finish(asked, machine, held, judge(by_threads, predicted))


def exported(work: Path, recipe: str) -> dict[str, Path]:
    """Model -> the folder of its export. Both recipes share the checkpoints."""
    source = work / "checkpoint"
    if not (source / "config.json").is_file():
        say(f"writing {source}")
        run_export([sys.executable, "-m", "benchmarks.random_checkpoint", MODEL, str(source)])
    twin = work / recipe / "unshared-checkpoint"
    shared_twin = work / "unshared-checkpoint"
    if not (shared_twin / "config.json").is_file():
        say(f"writing {shared_twin}")
        run_export([sys.executable, "-m", "benchmarks.unshared_twin", str(source), str(shared_twin)])
    if not twin.exists():
        twin.parent.mkdir(parents=True, exist_ok=True)
        twin.symlink_to(shared_twin, target_is_directory=True)
    return export_missing(
        work / recipe,
        str(source),
        "model.pte",
        lambda checkpoint, folder, schedule: pte_command(checkpoint, folder, recipe=recipe, schedule=schedule),
    )


def predict(folder: Path) -> Predicted:
    """What the memory model says of an artifact. VmHWM counts a tied table twice while its head is packed: so do we here."""
    facts = facts_of_manifest(read_manifest(folder), folder)
    memory = estimate_memory(facts).without([PROCESS])
    load, run = (total(term.bytes for term in memory.during(when)).likely for when in ("load", "run"))
    return Predicted(memory.peak_dirty.likely / MIB, max(load + tied_source_bytes(facts), run) / MIB)


def resident_at_peak_mib(measured: Measurement) -> float:
    """VmHWM above what the runner held before it touched the model."""
    return (measured.peak_rss_kib - measured.at_start.rss_anon_kib - measured.at_start.rss_file_kib) / 1024


def print_ratios(by_threads: Mapping[int, Mapping[str, Sequence[Measurement]]], *, markdown: bool) -> None:
    """Each model against base: the paper's, then ours at each number of threads."""
    rows = []
    for name in (SHARED, UNSHARED):
        for place, row in enumerate(PAPER_ROWS):
            paper = PAPER_MS[name][place] / PAPER_MS[BASE][place]
            ours = [f"{compare(runs[name], runs[BASE], row.value):.2f}" for runs in by_threads.values()]
            rows.append((f"{name}: {row.title.split(',')[0]}", f"{paper:.2f}", *ours))
    columns = ("x base", "paper, iPhone 13", *(f"here, {counted(threads, 'thread')}" for threads in by_threads))
    print_table("Ratios to base", columns, rows, markdown=markdown)


def print_memory(predicted: Mapping[str, Predicted], runs: Mapping[str, Sequence[Measurement]], *, markdown: bool) -> None:
    rows = []
    for name, said in predicted.items():
        dirty, resident = (max(map(value, runs[name])) for value in (dirty_at_end, resident_at_peak_mib))
        clean = max((m.at_end.rss_file_kib - m.at_start.rss_file_kib) / 1024 for m in runs[name])
        rows.append(
            (
                name,
                f"{said.dirty_mib:.1f}",
                f"{dirty:.1f} ({off_percent(said.dirty_mib, dirty):+.1f} %)",
                f"{clean:.1f}",
                f"{said.resident_mib:.1f}",
                f"{resident:.1f}",
            )
        )
    columns = ("MiB above the runner", "dirty, predicted", "measured", "clean at the end")
    columns += ("peak, predicted with the whole table", "measured")
    print_table("Memory, predicted from the manifest and measured", columns, rows, markdown=markdown)


def off_percent(predicted: float, measured: float) -> float:
    return 100 * (predicted / measured - 1)


def judge(by_threads: Mapping[int, Mapping[str, Sequence[Measurement]]], predicted: Mapping[str, Predicted]) -> list[Figure]:
    """The figures the project promises: the paper's shape of the table, and the memory model's error."""
    first = next(iter(by_threads.values()))
    figures = []
    for threads, runs in by_threads.items():
        at = counted(threads, "thread")
        init, slower = PAPER_ROWS[1].value, PAPER_ROWS[2].value
        figures += [
            at_most(f"layer-shared: init against base, {at}", compare(runs[SHARED], runs[BASE], init), MAX_INIT_RATIO),
            at_most(f"layer-shared: execute against unshared, {at}", compare(runs[SHARED], runs[UNSHARED], slower), 1.0),
        ]
    dirty = [abs(off_percent(predicted[name].dirty_mib, max(map(dirty_at_end, runs)))) for name, runs in first.items()]
    resident = [max(map(resident_at_peak_mib, runs)) / predicted[name].resident_mib for name, runs in first.items()]
    figures.append(at_most("dirty: predicted, worst of three", max(dirty), MAX_MEMORY_ERROR_PERCENT, "%"))
    figures.append(at_most("peak resident: measured against predicted, worst of three", max(resident), 1.0))
    return figures


if __name__ == "__main__":
    sys.exit(main())
