"""Table: what an export costs, SmolLM2-135M and its layer-shared twin (the same 30 blocks, each run twice).

    python -m benchmarks.export_cost                    both formats, a minute and a half a run
    python -m benchmarks.export_cost --formats onnx     the ONNX model alone
    python -m benchmarks.export_cost --stock            and ExecuTorch's stock path, once: five minutes more

Wall time is that of the whole `mobile-export pte ... --no-verify` process (or `onnx`), start to exit; peak RSS is its
ru_maxrss. The ONNX model is exported once more with its verification, which is most of a verified export.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.export_child import ExportCost, onnx_command, pte_command, run_export, stock_command
from benchmarks.machine import ONNX_PACKAGES, PTE_PACKAGES, describe_machine
from benchmarks.report import Figure, add_report_options, at_most, finish, paired_ratio, print_table, spread
from mobile_export.manifest import read_manifest
from mobile_export.units import counted

PTE, ONNX = "pte", "onnx"
BASE, SHARED, STOCK = "pte", "pte, layer-shared", "stock path"
ONNX_BASE, ONNX_SHARED, ONNX_VERIFIED = "onnx", "onnx, layer-shared", "onnx, verified"
SCHEDULE = "immediate"
MAX_WALL_S, MAX_PEAK_RSS_MB, MAX_SHARED_WALL_RATIO = 30.0, 1_300.0, 1.5
MAX_ONNX_WALL_S, MAX_ONNX_PEAK_RSS_MB = 15.0, 800.0

Command = Callable[[str, Path], list[str]]  # of a checkpoint and a folder to write


def commands(recipe: str) -> dict[str, dict[str, Command]]:
    """Format -> row -> the command to be measured."""
    return {
        PTE: {
            BASE: lambda source, folder: pte_command(source, folder, recipe=recipe),
            SHARED: lambda source, folder: pte_command(source, folder, recipe=recipe, schedule=SCHEDULE),
        },
        ONNX: {
            ONNX_BASE: lambda source, folder: onnx_command(source, folder, recipe=recipe),
            ONNX_SHARED: lambda source, folder: onnx_command(source, folder, recipe=recipe, schedule=SCHEDULE),
            ONNX_VERIFIED: lambda source, folder: onnx_command(source, folder, recipe=recipe, verify=True),
        },
    }


def main() -> int:
    """Export in turn, print the table, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m")
    parser.add_argument("--recipe", default="w4-fast")
    parser.add_argument("--formats", nargs="+", choices=(PTE, ONNX), default=[PTE, ONNX])
    parser.add_argument("--stock", action="store_true", help="also the stock path, once")
    add_report_options(parser, runs=3)
    asked = parser.parse_args()
    machine = describe_machine((*PTE_PACKAGES, *ONNX_PACKAGES))
    print(machine)
    rows = {name: command for form in asked.formats for name, command in commands(asked.recipe)[form].items()}
    costs: dict[str, list[ExportCost]] = {name: [] for name in rows}
    sizes_mb: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        for run in range(asked.runs):
            for name, command in rows.items():
                folder = Path(work, f"{name}-{run}")
                costs[name].append(run_export(command(asked.checkpoint, folder)))
                sizes_mb[name] = read_manifest(folder).bytes / 1e6
                shutil.rmtree(folder)
        if asked.stock:
            file = Path(work, "stock.pte")
            costs[STOCK] = [run_export(stock_command(asked.checkpoint, file))]
            sizes_mb[STOCK] = file.stat().st_size / 1e6
    print_costs(costs, sizes_mb, asked.runs, markdown=asked.markdown)
    measured = {name: {"file_mb": sizes_mb[name], "runs": list(map(asdict, runs))} for name, runs in costs.items()}
    return finish(asked, machine, measured, judge(costs))


def print_costs(costs: dict[str, list[ExportCost]], sizes_mb: dict[str, float], count: int, *, markdown: bool) -> None:
    """A row per export: medians, with the least and the largest run."""
    rows = [
        (
            name,
            spread([cost.wall_s for cost in runs]),
            spread([cost.cpu_s for cost in runs]),
            spread([cost.peak_rss_mb for cost in runs], 0),
            f"{sizes_mb[name]:.2f}",
        )
        for name, runs in costs.items()
    ]
    columns = ("export", "wall s", "CPU s", "peak RSS MB", "file MB")
    title = f"Cost of an export, median (least to largest) of {counted(count, 'run')}"
    print_table(title, columns, rows, markdown=markdown)


def judge(costs: dict[str, list[ExportCost]]) -> list[Figure]:
    """The figures the project promises for an export."""
    wall_s = {name: [cost.wall_s for cost in runs] for name, runs in costs.items()}
    peak = {name: max(cost.peak_rss_mb for cost in runs) for name, runs in costs.items()}
    figures = []
    if BASE in costs:
        shared_ratio = paired_ratio(wall_s[SHARED], wall_s[BASE])
        figures += [
            at_most("pte: wall", statistics.median(wall_s[BASE]), MAX_WALL_S, "s"),
            at_most("pte: peak RSS", peak[BASE], MAX_PEAK_RSS_MB, "MB"),
            at_most("pte, layer-shared: wall against base", shared_ratio, MAX_SHARED_WALL_RATIO),
        ]
    for name in (ONNX_BASE, ONNX_SHARED) if ONNX_BASE in costs else ():
        figures += [
            at_most(f"{name}: wall", statistics.median(wall_s[name]), MAX_ONNX_WALL_S, "s"),
            at_most(f"{name}: peak RSS", peak[name], MAX_ONNX_PEAK_RSS_MB, "MB"),
        ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
