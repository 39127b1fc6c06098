"""Table: our ONNX models against onnxruntime-genai's own int4 builder, the same checkpoint in the same runtime.

The peer is `python -m onnxruntime_genai.models.builder -p int4 -e cpu` of the same float32 numbers (hf_folder.py), once
as it comes and once with prune_lm_head=true, which like ours gives the last token's logits alone. Ours are exported for
the peer's context, so the rotary tables are as long. Each is measured in a process of its own (measure_onnx.py), in
turn: A B C, C B A ..., at one thread and at two; then ours and the peer through onnxruntime-genai.

    python -m benchmarks.onnx_peer --work work/onnx-peer
    python -m benchmarks.onnx_peer --work work/onnx-peer --ours w4-all-fast --runs 40        only the figures to reach

Ratios are medians over the rounds of ours / peer, so a slow moment of the machine, which hits a whole round, cancels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.export_child import onnx_command, run_export
from benchmarks.machine import ONNX_PACKAGES, describe_machine
from benchmarks.measure_onnx import FILES, measure_in_child, read_genai_config
from benchmarks.onnx_table import DECODE, PREFILL, RATES, Runs, dirty_mb_above, print_onnx_tables
from benchmarks.report import Figure, add_report_options, at_least, at_most, finish, middle_half, paired_ratios, print_table
from benchmarks.rounds import as_json, compare, in_turn, say
from mobile_export.units import counted

PEER, PEER_PRUNED, HELD, INT8_KV = "peer", "peer, last logits", "w4-all-fast", "w4-all-fast, int8 KV"
# column -> recipe and further options of `mobile-export onnx`
OURS: dict[str, tuple[str, tuple[str, ...]]] = {
    HELD: ("w4-all-fast", ()),
    "w4-fast": ("w4-fast", ()),
    "w8-fast": ("w8-fast", ()),
    INT8_KV: ("w4-all-fast", ("--kv", "int8")),
    "w4-all-fast, float16": ("w4-all-fast", ("--activations", "float16")),
    "w4-all-fast, portable": ("w4-all-fast", ("--portable",)),
}
PEER_OPTIONS: dict[str, tuple[str, ...]] = {PEER: (), PEER_PRUNED: ("prune_lm_head=true",)}
OFFLINE = {"HF_HUB_OFFLINE": "1"}

MIN_DIRTY_SAVED_MB = 10.0
INT8_KV_RATIO = 0.25


def main() -> int:
    """Export and build what is missing, measure in turn, print the tables, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the models; kept, and used again")
    parser.add_argument("--checkpoint", default="smollm2-135m", help="a Llama: the peer's builder is told it is one")
    parser.add_argument("--ours", nargs="+", choices=OURS, default=list(OURS), metavar="NAME", help=f"of {', '.join(OURS)}")
    parser.add_argument("--genai-runs", type=int, default=5, help="rounds through onnxruntime-genai (default 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    add_report_options(parser, runs=15)
    asked = parser.parse_args()
    machine = describe_machine(ONNX_PACKAGES)
    print(machine)
    folders = build_peers(asked.work.resolve(), asked.checkpoint)
    folders |= export_ours(asked.work.resolve(), asked.checkpoint, asked.ours, peer_context(folders[PEER]))
    by_threads = in_turn(
        list(folders), asked.threads, asked.runs, lambda name, threads: measure_in_child(folders[name], threads=threads)
    )
    through_genai = in_turn(
        [name for name in folders if name in (PEER, PEER_PRUNED, HELD)],
        asked.threads,
        asked.genai_runs,
        lambda name, threads: measure_in_child(folders[name], threads=threads, genai=True),
    )
    for tables in (by_threads, through_genai):
        print_onnx_tables(tables, PEER, markdown=asked.markdown)
    figures = []
    if HELD in asked.ours:
        print_ratios(by_threads, markdown=asked.markdown)
        figures = judge(by_threads)
    measured = {"onnxruntime": as_json(by_threads), "onnxruntime-genai": as_json(through_genai)}
    return finish(asked, machine, measured, figures)


def build_peers(work: Path, checkpoint: str) -> dict[str, Path]:
    """Column -> folder the peer's builder wrote, where it is not there yet."""
    source = work / "hf"
    folders = {name: folder_of(work, name) for name in PEER_OPTIONS}
    for name, folder in folders.items():
        if (folder / FILES[1]).is_file():
            continue
        if not (source / "config.json").is_file():
            say(f"writing {source}")
            run_export([sys.executable, "-m", "benchmarks.hf_folder", checkpoint, str(source)])
        say(f"building {name}")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(folder)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(work / "cache")]
        run_export([*command, "--extra_options", "hf_token=false", *PEER_OPTIONS[name]], OFFLINE)
    return folders


def peer_context(peer: Path) -> int:
    """Rows of the peer's rotary tables."""
    return int(read_genai_config(peer)["model"]["context_length"])


def export_ours(work: Path, checkpoint: str, names: Sequence[str], max_context: int) -> dict[str, Path]:
    """Column -> folder of our export, made where it is not there yet."""
    folders = {name: folder_of(work, name) for name in names}
    for name, folder in folders.items():
        if not (folder / FILES[0]).is_file():
            say(f"exporting {name}")
            recipe, options = OURS[name]
            run_export(onnx_command(checkpoint, folder, recipe=recipe, max_context=max_context, options=options))
    return folders


def folder_of(work: Path, name: str) -> Path:
    return work / name.replace(",", "").replace(" ", "-")


def print_ratios(by_threads: dict[int, Runs], *, markdown: bool) -> None:
    """How sure the ratios are that the figures rest on: of each round ours / the peer, middle half and extremes."""
    lines = []
    for threads, runs in by_threads.items():
        for against in PEER_OPTIONS:
            for row in RATES:
                ratios = paired_ratios([row.value(m) for m in runs[HELD]], [row.value(m) for m in runs[against]])
                low, high = middle_half(ratios)
                name = f"{row.title}, against {against}, {counted(threads, 'thread')}"
                ends = f"{min(ratios):.3f} to {max(ratios):.3f}"
                lines.append((name, f"{statistics.median(ratios):.3f}", f"{low:.3f} to {high:.3f}", ends))
    columns = ("", "median ratio", "middle half", "all rounds")
    print_table(f"{HELD} against the peer, round by round", columns, lines, markdown=markdown)


def judge(by_threads: dict[int, Runs]) -> list[Figure]:
    """The figures the project promises against the peer as it comes, at every thread count measured."""
    first = next(iter(by_threads.values()))
    file_mb = {name: runs[0].file_bytes / 1e6 for name, runs in first.items()}
    figures = [at_most(f"{HELD}: files against the peer's", file_mb[HELD], file_mb[PEER], "MB")]
    if INT8_KV in first:
        kv_ratio = first[INT8_KV][0].kv_mib / first[HELD][0].kv_mib
        figures.append(at_most(f"{INT8_KV}: cache against float32", kv_ratio, INT8_KV_RATIO))
    for threads, runs in by_threads.items():
        at = f", {counted(threads, 'thread')}"
        ours, peer = runs[HELD], runs[PEER]
        saved_mb = min(dirty_mb_above(peer, ours))
        figures += [
            at_least(f"{HELD}: dirty below the peer's after load{at}", saved_mb, MIN_DIRTY_SAVED_MB, "MB"),
            at_least(f"{HELD}: decode against the peer{at}", compare(ours, peer, DECODE.value), 1.0),
            at_least(f"{HELD}: prefill against the peer{at}", compare(ours, peer, PREFILL.value), 1.0),
            at_least(
                f"{HELD}: prefill against the peer, last logits{at}", compare(ours, runs[PEER_PRUNED], PREFILL.value), 1.0
            ),
        ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
