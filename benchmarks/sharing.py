"""Table: what sharing costs and saves, as the MobileLLM paper tells it (load, init, execute), with memory and file.

Three exports of one checkpoint of N blocks: base (N executions), layer-shared (each block twice: 2N executions of N
stored blocks) and its unshared twin (2N executions of 2N stored blocks, no two equal; see unshared_twin.py). Each is
exported with `mobile-export pte` where its folder in --work lacks a model.pte, then measured in a process of its own
(measure_pte.py), in turn: A B C, C B A ..., at one thread and at two.

    python -m benchmarks.sharing --work work/sharing
    python -m benchmarks.sharing --work work/sharing --stock stock.pte      with the stock path's file in the same run

Ratios are medians over the rounds of model / base, so a slow moment of the machine, which hits a whole round, cancels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.export_child import pte_command, run_export
from benchmarks.machine import describe_machine
from benchmarks.measure_pte import Measurement, measure_in_child
from benchmarks.report import Figure, add_report_options, at_least, at_most, finish
from benchmarks.rounds import Row, as_json, compare, in_turn, print_comparison, say
from mobile_export.units import counted

BASE, SHARED, UNSHARED, STOCK = "base", "layer-shared", "unshared twin", "stock path"
KV_BYTES_PER_VALUE = 4  # the recipes measured here keep a float32 KV cache

MAX_FILE_RATIO = 1.005
MAX_EXTRA_DIRTY_MIB = 2e6 / 2**20
MAX_INIT_RATIO = 1.15
MIN_TWO_THREAD_RATIO = 1.5

ExportCommand = Callable[[str, Path, str | None], Sequence[str]]  # of a checkpoint, a folder to write, a schedule
Runs = dict[str, list[Measurement]]  # model -> one measurement a round


def kv_mib(measured: Measurement) -> float:
    """Bytes of the KV slots a program holds: slots x rows x key and value numbers, as its metadata says."""
    return measured.kv_slots * measured.kv_rows * measured.kv_row_values * KV_BYTES_PER_VALUE / 2**20


ROWS = (
    Row[Measurement]("file, MB", lambda m: m.file.bytes / 1e6, 2),
    Row[Measurement]("load, ms", lambda m: m.load_ms, 1),
    Row[Measurement]("init, ms", lambda m: m.init_ms, 0),
    Row[Measurement]("first token, ms", lambda m: m.steps.first_token_ms, 0),
    Row[Measurement]("prefill, tokens/s", lambda m: m.steps.prefill_tokens_per_s, 0),
    Row[Measurement]("decode, tokens/s", lambda m: m.steps.decode_tokens_per_s, 1),
    Row[Measurement]("dirty after init, MiB", lambda m: m.after_init.dirty_mib, 1),
    Row[Measurement]("dirty at the end, MiB", lambda m: m.at_end.dirty_mib, 1),
    Row[Measurement]("clean at the end, MiB", lambda m: m.at_end.clean_mib, 1),
    Row[Measurement]("of it KV slots, MiB", kv_mib, 1),
)


def main() -> int:
    """Export what is missing, measure in turn, print the tables, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the exports; kept, and used again")
    parser.add_argument("--checkpoint", default="smollm2-135m", help="one that stores each block once")
    parser.add_argument("--recipe", default="w4-fast")
    parser.add_argument("--stock", type=Path, metavar="FILE", help="a .pte of benchmarks.stock_path, measured too")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    add_report_options(parser, runs=5)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    folders = export_missing(
        asked.work.resolve(),
        asked.checkpoint,
        "model.pte",
        lambda source, folder, schedule: pte_command(source, folder, recipe=asked.recipe, schedule=schedule),
    )
    ptes = {name: folder / "model.pte" for name, folder in folders.items()}
    if asked.stock:
        ptes[STOCK] = asked.stock
    by_threads = in_turn(
        list(ptes),
        asked.threads,
        asked.runs,
        lambda name, threads: measure_in_child(
            ptes[name], threads=threads, prompt_tokens=asked.prompt_tokens, new_tokens=asked.new_tokens
        ),
    )
    for threads, runs in by_threads.items():
        title = (
            f"Sharing, {counted(threads, 'thread')}: prompt {asked.prompt_tokens}, {asked.new_tokens} new tokens, "
            f"context {runs[BASE][0].kv_rows}; median (least to largest) of {counted(asked.runs, 'round')}"
        )
        print_comparison(title, ROWS, runs, BASE, markdown=asked.markdown)
    return finish(asked, machine, as_json(by_threads), judge(by_threads))


def export_missing(work: Path, checkpoint: str, file: str, command: ExportCommand) -> dict[str, Path]:
    """Model -> the folder of its export, made where `file` is not in it yet."""
    twin = work / "unshared-checkpoint"
    made = {
        BASE: (work / "base", checkpoint, None),
        SHARED: (work / "layer-shared", checkpoint, "immediate"),
        UNSHARED: (work / "unshared-twin", str(twin), None),
    }
    for name, (folder, source, schedule) in made.items():
        if (folder / file).is_file():
            continue
        if name == UNSHARED and not (twin / "config.json").is_file():
            say(f"writing {twin}")
            run_export([sys.executable, "-m", "benchmarks.unshared_twin", checkpoint, str(twin)])
        say(f"exporting {name}")
        run_export(command(source, folder, schedule))
    return {name: folder for name, (folder, _, _) in made.items()}


def judge(by_threads: dict[int, Runs]) -> list[Figure]:
    """The figures the project promises, at every thread count measured."""
    first = next(iter(by_threads.values()))
    file_ratio = first[SHARED][0].file.bytes / first[BASE][0].file.bytes
    figures = [at_most("layer-shared: file against base", file_ratio, MAX_FILE_RATIO)]
    for threads, runs in by_threads.items():
        at = f", {counted(threads, 'thread')}"
        base, shared, unshared = runs[BASE], runs[SHARED], runs[UNSHARED]
        extra_kv_mib = kv_mib(shared[0]) - kv_mib(base[0])
        extra_mib = [s.at_end.dirty_mib - b.at_end.dirty_mib - extra_kv_mib for s, b in zip(shared, base, strict=True)]
        init = compare(shared, base, lambda m: m.init_ms)
        figures += [
            at_most(f"layer-shared: dirty above base and its KV slots{at}", max(extra_mib), MAX_EXTRA_DIRTY_MIB, "MiB"),
            at_most(f"layer-shared: init against base{at}", init, MAX_INIT_RATIO),
            at_least(f"layer-shared: decode against unshared twin{at}", compare(shared, unshared, decode_rate), 1.0),
        ]
        if STOCK in runs:
            stock = runs[STOCK]
            figures += [
                at_least(f"base: decode against stock path{at}", compare(base, stock, decode_rate), 1.0),
                at_least(f"base: prefill against stock path{at}", compare(base, stock, prefill_rate), 1.0),
            ]
    if {1, 2} <= by_threads.keys():
        ratio = compare(by_threads[2][BASE], by_threads[1][BASE], decode_rate)
        figures.append(at_least("base: decode, 2 threads against 1", ratio, MIN_TWO_THREAD_RATIO))
    return figures


def decode_rate(measured: Measurement) -> float:
    return measured.steps.decode_tokens_per_s


def prefill_rate(measured: Measurement) -> float:
    return measured.steps.prefill_tokens_per_s


if __name__ == "__main__":
    sys.exit(main())
