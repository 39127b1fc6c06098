"""Table: what a Core ML package weighs and costs at MobileLLM-125M's shape: base, layer-shared, and its unshared twin.

    python -m benchmarks.coreml_cost --work work/coreml                 three exports and three short runs a round
    python -m benchmarks.coreml_cost --work work/coreml --runs 1        the sizes, and each cost once

The checkpoint is SmolLM2-135M with the first 32,000 rows of its table: the same 30 blocks of 576 that MobileLLM-125M
has, with a trained model's values. Every matrix has 4 bits in groups of 32, context 512. CPU time and peak RSS are those
of a whole `mobile-export coreml ... --no-verify` process. Decode is our interpreter's, one thread, float32, per token.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.export_child import ExportCost, coreml_command, run_export
from benchmarks.json_child import run_for_json
from benchmarks.machine import describe_machine
from benchmarks.report import Figure, add_report_options, at_most, finish, print_table, spread
from benchmarks.sharing import BASE, SHARED, UNSHARED
from mobile_export.manifest import read_manifest

PACKAGES = ("torch", "coremltools", "numpy")
VOCABULARY, SCHEDULE, STEPS = 32_000, "immediate", 8
MAX_WEIGHTS_MB, MAX_RATIO = 70.6, 1.001
MAX_CPU_S, MAX_PEAK_RSS_MB, MAX_DECODE_S = 60.0, 1_600.0, 0.5


def main() -> int:
    """Export and run in turn, print the table, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and exports; checkpoints are kept")
    add_report_options(parser, runs=3)
    asked = parser.parse_args()
    machine = describe_machine(PACKAGES)
    print(machine)
    work = asked.work.resolve()
    sources = checkpoints(work)
    costs: dict[str, list[ExportCost]] = {name: [] for name in sources}
    steps: dict[str, list[float]] = {name: [] for name in sources}
    sizes: dict[str, dict[str, float]] = {}
    for _ in range(asked.runs):
        for name, (source, schedule) in sources.items():
            folder = work / f"{name}-export"
            shutil.rmtree(folder, ignore_errors=True)
            costs[name].append(run_export(coreml_command(str(source), folder, schedule=schedule)))
            files = {Path(file.name).name: file.bytes / 1e6 for file in read_manifest(folder).files}
            sizes[name] = {"weight.bin": files["weight.bin"], "model.mlmodel": files["model.mlmodel"]}
            command = [sys.executable, "-m", "benchmarks.measure_coreml", str(folder), "--steps", str(STEPS)]
            steps[name].append(run_for_json(command)["decode_s"])
    rows = [
        (
            name,
            f"{sizes[name]['weight.bin']:.3f}",
            f"{sizes[name]['model.mlmodel']:.3f}",
            spread([cost.cpu_s for cost in runs]),
            spread([cost.peak_rss_mb for cost in runs], 0),
            spread([1e3 * step for step in steps[name]], 0),
        )
        for name, runs in costs.items()
    ]
    columns = ("package", "weight.bin MB", "model.mlmodel MB", "export CPU s", "export peak RSS MB", "decode ms")
    print_table("A Core ML package at MobileLLM-125M's shape, 4 bits in groups of 32", columns, rows, markdown=asked.markdown)
    measured = {
        name: {**sizes[name], "cpu_s": [c.cpu_s for c in runs], "decode_s": steps[name]} for name, runs in costs.items()
    }
    return finish(asked, machine, measured, judge(costs, steps, sizes))


def checkpoints(work: Path) -> dict[str, tuple[Path, str | None]]:
    """Model -> checkpoint folder, written where it is missing, and the schedule it is exported with."""
    narrow, twin = work / "checkpoint", work / "unshared-checkpoint"
    if not (narrow / "config.json").is_file():
        run_export([sys.executable, "-m", "benchmarks.narrow_vocabulary", "smollm2-135m", str(VOCABULARY), str(narrow)])
    if not (twin / "config.json").is_file():
        run_export([sys.executable, "-m", "benchmarks.unshared_twin", str(narrow), str(twin)])
    return {BASE: (narrow, None), SHARED: (narrow, SCHEDULE), UNSHARED: (twin, None)}


def judge(
    costs: dict[str, list[ExportCost]], steps: dict[str, list[float]], sizes: dict[str, dict[str, float]]
) -> list[Figure]:
    """The figures the project promises."""
    base = sizes[BASE]["weight.bin"]
    return [
        at_most("base: weight.bin", base, MAX_WEIGHTS_MB, "MB"),
        at_most("layer-shared: weight.bin against base", sizes[SHARED]["weight.bin"] / base, MAX_RATIO),
        at_most("base: export CPU", statistics.median(cost.cpu_s for cost in costs[BASE]), MAX_CPU_S, "s"),
        at_most("base: export peak RSS", max(cost.peak_rss_mb for cost in costs[BASE]), MAX_PEAK_RSS_MB, "MB"),
        at_most("base: interpreter decode", statistics.median(steps[BASE]), MAX_DECODE_S, "s"),
    ]


if __name__ == "__main__":
    sys.exit(main())
