"""Table: what an export costs, SmolLM2-135M and its layer-shared twin (the same 30 blocks, each run twice).

    python -m benchmarks.export_cost                    a minute a run
    python -m benchmarks.export_cost --stock            and ExecuTorch's stock path, once: five minutes more

Wall time is that of the whole `mobile-export pte ... --no-verify` process, start to exit; peak RSS is its ru_maxrss.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.export_child import ExportCost, pte_command, run_export, stock_command
from benchmarks.machine import describe_machine
from benchmarks.report import Figure, add_report_options, at_most, finish, paired_ratio, print_table, spread
from mobile_export.units import counted

BASE, SHARED, STOCK = "base", "layer-shared", "stock path"
MAX_WALL_S, MAX_PEAK_RSS_MB, MAX_SHARED_WALL_RATIO = 30.0, 1_300.0, 1.5


def main() -> int:
    """Export in turn, print the table, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m")
    parser.add_argument("--recipe", default="w4")
    parser.add_argument("--stock", action="store_true", help="also the stock path, once")
    add_report_options(parser, runs=3)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    costs: dict[str, list[ExportCost]] = {BASE: [], SHARED: []}
    sizes_mb: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        for run in range(asked.runs):
            for name, schedule in ((BASE, None), (SHARED, "immediate")):
                folder = Path(work, f"{name}-{run}")
                command = pte_command(asked.checkpoint, folder, recipe=asked.recipe, schedule=schedule)
                costs[name].append(run_export(command))
                sizes_mb[name] = (folder / "model.pte").stat().st_size / 1e6
        if asked.stock:
            file = Path(work, "stock.pte")
            costs[STOCK] = [run_export(stock_command(asked.checkpoint, file))]
            sizes_mb[STOCK] = file.stat().st_size / 1e6
    print_costs(costs, sizes_mb, markdown=asked.markdown)
    measured = {name: {"file_mb": sizes_mb[name], "runs": list(map(asdict, runs))} for name, runs in costs.items()}
    return finish(asked, machine, measured, judge(costs))


def print_costs(costs: dict[str, list[ExportCost]], sizes_mb: dict[str, float], *, markdown: bool) -> None:
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
    title = f"Cost of an export, median (least to largest) of {counted(len(costs[BASE]), 'run')}"
    print_table(title, columns, rows, markdown=markdown)


def judge(costs: dict[str, list[ExportCost]]) -> list[Figure]:
    """The figures the project promises for an export."""
    wall_s = {name: [cost.wall_s for cost in runs] for name, runs in costs.items()}
    peak = {name: max(cost.peak_rss_mb for cost in runs) for name, runs in costs.items()}
    return [
        at_most("base: wall", statistics.median(wall_s[BASE]), MAX_WALL_S, "s"),
        at_most("base: peak RSS", peak[BASE], MAX_PEAK_RSS_MB, "MB"),
        at_most("layer-shared: wall against base", paired_ratio(wall_s[SHARED], wall_s[BASE]), MAX_SHARED_WALL_RATIO),
    ]


if __name__ == "__main__":
    sys.exit(main())
