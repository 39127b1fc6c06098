"""Table: a .pte in our C++ runner, with packed weights in memory, cached and in a file, against ExecuTorch's Python runtime.

Each is run in a process of its own, in turn: A B C, C B A ..., at one thread and at two. The same w4-fast artifact in all but
the last column, which has an int8 KV cache on top.

    python -m benchmarks.runner --work work/runner
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.export_child import pte_command, run_export
from benchmarks.machine import describe_machine
from benchmarks.report import Figure, add_report_options, at_least, at_most, finish
from benchmarks.rounds import Row, as_json, compare, in_turn, print_comparison, say
from mobile_export.measure.build import build_runner
from mobile_export.measure.launch import launch
from mobile_export.measure.measurement import Job, Measurement, Resident
from mobile_export.units import counted

CPP, CACHE, FILE, PYTHON, SMALLEST = "C++", "weight cache", "packed file", "Python runtime", "packed file, int8 KV"
MAX_DIRTY_MIB, MAX_WARM_INIT_S, MIN_TWO_THREADS = 30.0, 0.08, 1.5
SECONDS = 600.0


def above_start(stage: Callable[[Measurement], Resident]) -> Callable[[Measurement], float]:
    """Dirty MiB of a stage above what the process held before it touched the model."""
    return lambda m: (stage(m).rss_anon_kib - m.at_start.rss_anon_kib) / 1024


def decode_rate(measured: Measurement) -> float:
    """1 / median seconds a token, one token a call."""
    return 1 / statistics.median(seconds for sequence in measured.decode_s for seconds in sequence)


dirty_at_end = above_start(lambda m: m.at_end)
ROWS = (
    Row[Measurement]("load, ms", lambda m: 1e3 * m.load_s, 1),
    Row[Measurement]("init, ms", lambda m: 1e3 * m.init_s, 0),
    Row[Measurement]("first token, ms", lambda m: 1e3 * m.first_token_s, 0),
    Row[Measurement]("prefill, tokens/s", lambda m: m.prompt_tokens / statistics.median(m.prefill_s), 0),
    Row[Measurement]("decode, tokens/s", decode_rate, 1),
    Row[Measurement]("dirty after init, MiB", above_start(lambda m: m.after_init), 1),
    Row[Measurement]("dirty at the end, MiB", dirty_at_end, 1),
    Row[Measurement]("clean at the end, MiB", lambda m: (m.at_end.rss_file_kib - m.at_start.rss_file_kib) / 1024, 1),
    Row[Measurement]("peak RSS of the process, MiB", lambda m: m.peak_rss_kib / 1024, 1),
)


def main() -> int:
    """Export what is missing, measure in turn, print the tables, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the exports; kept, and used again")
    parser.add_argument("--checkpoint", default="smollm2-135m")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    add_report_options(parser, runs=7)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    work = asked.work.resolve()
    float32 = exported(work / "float32-kv", asked.checkpoint)
    int8 = exported(work / "int8-kv", asked.checkpoint, "--kv", "int8")
    cpp, python = [str(build_runner())], [sys.executable, "-m", "mobile_export.measure.pte_runner"]
    ways = {
        CPP: (cpp, Job(float32)),
        CACHE: (cpp, Job(float32, weight_cache=True)),
        FILE: (cpp, Job(float32, packed_weights=work / "float32-kv.packed")),
        SMALLEST: (cpp, Job(int8, packed_weights=work / "int8-kv.packed")),
        PYTHON: (python, Job(float32)),
    }
    by_threads = measured_in_turn(ways, asked.threads, asked.runs)
    for threads, runs in by_threads.items():
        first = runs[CPP][0]
        title = (
            f"Runner, {counted(threads, 'thread')}: prompt {first.prompt_tokens}, {len(first.decode_s[0])} new tokens, "
            f"context 512; median (least to largest) of {counted(asked.runs, 'round')}"
        )
        print_comparison(title, ROWS, runs, CPP, markdown=asked.markdown)
    return finish(asked, machine, as_json(by_threads), judge(by_threads))


def measured_in_turn(
    ways: Mapping[str, tuple[list[str], Job]], threads: Sequence[int], rounds: int
) -> dict[int, dict[str, list[Measurement]]]:
    """Threads -> way -> one measurement a round. ways: the command of a runner, and its job.

    Each is run once before: that brings its files into the page cache, and makes the packed ones.
    """

    def measure(name: str, count: int) -> Measurement:
        command, job = ways[name]
        return launch(command, replace(job, threads=count), timeout_s=SECONDS)

    for name in ways:
        say(f"warming up: {name}")
        measure(name, 1)
    return in_turn(list(ways), threads, rounds, measure)


def exported(folder: Path, checkpoint: str, *options: str) -> Path:
    """The model.pte in a folder, exported where it is not there yet."""
    if not (folder / "model.pte").is_file():
        say(f"exporting {folder.name}")
        run_export([*pte_command(checkpoint, folder), *options])
    return folder / "model.pte"


def judge(by_threads: Mapping[int, Mapping[str, Sequence[Measurement]]]) -> list[Figure]:
    """The figures the project promises."""
    first = next(iter(by_threads.values()))
    figures = [
        at_most("packed file, int8 KV: dirty at the end", max(map(dirty_at_end, first[SMALLEST])), MAX_DIRTY_MIB, "MiB"),
        at_most("packed file: init", statistics.median(m.init_s for m in first[FILE]), MAX_WARM_INIT_S, "s"),
    ]
    for threads, runs in by_threads.items():
        ratio = compare(runs[CPP], runs[PYTHON], decode_rate)
        figures.append(at_least(f"decode against the Python runtime, {counted(threads, 'thread')}", ratio, 1.0))
    if {1, 2} <= by_threads.keys():
        ratio = compare(by_threads[2][CPP], by_threads[1][CPP], decode_rate)
        figures.append(at_least("decode, 2 threads against 1", ratio, MIN_TWO_THREADS))
    return figures


if __name__ == "__main__":
    sys.exit(main())
