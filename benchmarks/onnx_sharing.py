"""Table: what sharing costs and saves in onnxruntime: base, layer-shared and its unshared twin, as sharing.py has them.

Each is exported with `mobile-export onnx` where its folder in --work lacks a model.onnx, then measured in a process of
its own (measure_onnx.py), in turn, at one thread and at two; base and layer-shared through onnxruntime-genai, too.

    python -m benchmarks.onnx_sharing --work work/onnx-sharing

Memory after load is without a KV cache, which has a slot an execution and so twice as many where blocks run twice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.export_child import onnx_command
from benchmarks.machine import ONNX_PACKAGES, describe_machine
from benchmarks.measure_onnx import FILES, measure_in_child
from benchmarks.onnx_table import DECODE, Runs, dirty_mb_above, print_onnx_tables
from benchmarks.report import Figure, add_report_options, at_least, at_most, finish
from benchmarks.rounds import as_json, compare, in_turn
from benchmarks.sharing import BASE, MAX_FILE_RATIO, SHARED, UNSHARED, export_missing
from mobile_export.units import counted

MAX_EXTRA_DIRTY_MB = 5.0


def main() -> int:
    """Export what is missing, measure in turn, print the tables, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the exports; kept, and used again")
    parser.add_argument("--checkpoint", default="smollm2-135m", help="one that stores each block once")
    parser.add_argument("--recipe", default="w4-fast")
    parser.add_argument("--genai-runs", type=int, default=3, help="rounds through onnxruntime-genai (default 3)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    add_report_options(parser, runs=7)
    asked = parser.parse_args()
    machine = describe_machine(ONNX_PACKAGES)
    print(machine)
    folders = export_missing(
        asked.work.resolve(),
        asked.checkpoint,
        FILES[0],
        lambda source, folder, schedule: onnx_command(source, folder, recipe=asked.recipe, schedule=schedule),
    )
    by_threads = in_turn(
        list(folders), asked.threads, asked.runs, lambda name, threads: measure_in_child(folders[name], threads=threads)
    )
    through_genai = in_turn(
        [BASE, SHARED],
        asked.threads,
        asked.genai_runs,
        lambda name, threads: measure_in_child(folders[name], threads=threads, genai=True),
    )
    for tables in (by_threads, through_genai):
        print_onnx_tables(tables, BASE, markdown=asked.markdown)
    measured = {"onnxruntime": as_json(by_threads), "onnxruntime-genai": as_json(through_genai)}
    return finish(asked, machine, measured, judge(by_threads))


def judge(by_threads: dict[int, Runs]) -> list[Figure]:
    """The figures the project promises, at every thread count measured."""
    first = next(iter(by_threads.values()))
    file_ratio = first[SHARED][0].file_bytes / first[BASE][0].file_bytes
    figures = [at_most("layer-shared: files against base", file_ratio, MAX_FILE_RATIO)]
    for threads, runs in by_threads.items():
        at = f", {counted(threads, 'thread')}"
        extra_mb = max(dirty_mb_above(runs[SHARED], runs[BASE]))
        decode = compare(runs[SHARED], runs[UNSHARED], DECODE.value)
        figures += [
            at_most(f"layer-shared: dirty above base after load{at}", extra_mb, MAX_EXTRA_DIRTY_MB, "MB"),
            at_least(f"layer-shared: decode against unshared twin{at}", decode, 1.0),
        ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
