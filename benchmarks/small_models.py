"""Table: every model of docs/models.md with fewer than 200 million parameters, at full size with random weights, as a .pte.

    python -m benchmarks.small_models --work work/small-models
    python -m benchmarks.small_models --work work/small-models --only opt pythia

`inspect` says beforehand what the parts weigh, from the file's header alone; the export is `mobile-export pte --recipe w4-fast
--max-context 512 --no-verify`, one whole process. Sizes do not depend on the values, so random ones will do.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.export_child import mobile_export_program, pte_command, run_export
from benchmarks.json_child import run_for_json
from benchmarks.machine import describe_machine
from benchmarks.models import MODELS, weights_of
from benchmarks.report import add_report_options, finish, print_table
from mobile_export.manifest import read_manifest
from mobile_export.quantize.sizes import stored_parameters

LARGEST = 200e6  # parameters


def main() -> int:
    """Write, inspect and export each in turn; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of a checkpoint and its export, one at a time")
    parser.add_argument("--only", nargs="+", default=[""], help="models with one of these words in their names")
    add_report_options(parser)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    small = [model for model in MODELS if stored_parameters(weights_of(model)) < LARGEST]
    chosen = [model["name"] for model in small if any(word.lower() in model["name"].lower() for word in asked.only)]
    measured = {name: _measure(name, asked.work.resolve()) for name in chosen}
    rows = [
        (
            name,
            f"{found['parameters'] / 1e6:.1f}",
            f"{found['predicted_mb']:.2f}",
            f"{found['file_mb']:.2f}",
            f"{found['wall_s']:.0f}",
            f"{found['cpu_s']:.0f}",
            f"{found['peak_rss_mb']:,.0f}",
        )
        for name, found in measured.items()
    ]
    columns = ("model", "parameters M", "weights predicted MB", "file MB", "wall s", "CPU s", "peak RSS MB")
    print_table("Exports at full size, recipe w4-fast, context 512", columns, rows, markdown=asked.markdown)
    return finish(asked, machine, measured, [])


def _measure(name: str, work: Path) -> dict[str, Any]:
    source, folder = work / "checkpoint", work / "export"
    for path in (source, folder):
        shutil.rmtree(path, ignore_errors=True)
    run_export([sys.executable, "-m", "benchmarks.random_checkpoint", name, str(source)])
    said = run_for_json([*mobile_export_program(), "inspect", str(source), "--recipe", "w4-fast", "--json"])
    cost = run_export(pte_command(str(source), folder, recipe="w4-fast"))
    return {
        "parameters": said["parameters_stored"],
        "predicted_mb": sum(part["bytes_recipe"] for part in said["parts"]) / 1e6,
        "file_mb": read_manifest(folder).bytes / 1e6,
        **asdict(cost),
    }


if __name__ == "__main__":
    sys.exit(main())
