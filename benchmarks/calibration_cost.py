"""Table: what calibrating costs, the text's sampling apart, on a machine's two cores.

    python -m benchmarks.calibration_cost           SmolLM2-135M by w4, six minutes
    python -m benchmarks.calibration_cost --mkl     and once more with torch's own float32 products

Nothing is taken from the cache: each run has one of its own. Wall time is that of the step, without starting the process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

from benchmarks.json_child import run_for_json
from benchmarks.machine import describe_machine
from benchmarks.report import add_report_options, at_most, finish, print_table

MAX_WALL_S, MAX_PEAK_RSS_MB = 180.0, 2_000.0


def main() -> int:
    """Sample, calibrate, print the table, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m")
    parser.add_argument("--recipe", default="w4")
    parser.add_argument("--mkl", action="store_true", help="once more with torch's own float32 products")
    add_report_options(parser)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    measured: dict[str, Any] = {}
    for options in ((), ("--mkl",)) if asked.mkl else ((),):
        with tempfile.TemporaryDirectory() as cache:
            for step in ("sample", "calibrate"):
                child = [sys.executable, "-m", "benchmarks.calibration_child", step, asked.checkpoint, asked.recipe, *options]
                measured[" ".join((step, *options))] = run_for_json(child, {"XDG_CACHE_HOME": cache})
    rows = [
        (name, f"{cost['tokens']:,}", f"{cost['wall_s']:.0f}", f"{cost['cpu_s']:.0f}", f"{cost['peak_rss_mb']:,.0f}")
        for name, cost in measured.items()
    ]
    columns = ("step", "tokens", "wall s", "CPU s", "peak RSS MB")
    print_table(f"{asked.checkpoint} by {asked.recipe}", columns, rows, markdown=asked.markdown)
    cost = measured["calibrate"]
    figures = [
        at_most("calibrating: wall time", cost["wall_s"], MAX_WALL_S, "s"),
        at_most("calibrating: peak RSS", cost["peak_rss_mb"], MAX_PEAK_RSS_MB, "MB"),
    ]
    return finish(asked, machine, measured, figures)


if __name__ == "__main__":
    sys.exit(main())
