"""Table: what each recipe weighs, part by part, against what `mobile-export inspect` says before anything is exported.

Bytes do not vary, so each recipe is exported once.

    python -m benchmarks.sizes                       exports smollm2-135m by three recipes into a temporary folder
    python -m benchmarks.sizes --work work/sizes     keeps the exports, and uses those that are there
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.export_child import mobile_export_program, pte_command, run_export
from benchmarks.json_child import run_for_json
from benchmarks.machine import describe_machine
from benchmarks.report import Figure, add_report_options, at_most, finish, print_table
from mobile_export.manifest import Manifest, read_manifest

MAX_FILE_MB = {("smollm2-135m", "w4-fast"): 89.5, ("smollm2-135m", "w8-fast"): 137.0}
MAX_PART_PERCENT = 1.0


def main() -> int:
    """Export by each recipe what is not there yet, print a table for each, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m")
    parser.add_argument("--recipes", nargs="+", default=["w4-fast", "w8-fast", "w4-all-fast"])
    parser.add_argument("--work", type=Path, help="folder of the exports; kept, and used again")
    add_report_options(parser)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    figures: list[Figure] = []
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work.resolve() if asked.work else Path(temporary)
        for recipe in asked.recipes:
            folder = work / recipe
            if not (folder / "model.pte").is_file():
                run_export(pte_command(asked.checkpoint, folder, recipe=recipe))
            manifest = read_manifest(folder)
            predicted = inspect(asked.checkpoint, recipe)
            print_parts(recipe, manifest, predicted, markdown=asked.markdown)
            figures += judge(asked.checkpoint, recipe, manifest, predicted)
            measured[recipe] = {
                "file_bytes": manifest.bytes,
                "parts": {part.name: part.bytes for part in manifest.parts},
                "predicted": predicted,
            }
    return finish(asked, machine, measured, figures)


def inspect(checkpoint: str, recipe: str) -> dict[str, int]:
    """Part -> bytes, as `inspect` predicts them."""
    command = [*mobile_export_program(), "inspect", checkpoint, "--recipe", recipe, "--json"]
    return {part["name"]: part["bytes_recipe"] for part in run_for_json(command)["parts"]}


def print_parts(recipe: str, manifest: Manifest, predicted: dict[str, int], *, markdown: bool) -> None:
    """A row per part of the file, and one for the whole."""
    rows = []
    for part in manifest.parts:
        expected = predicted.get(part.name)
        off = "" if expected is None else f"{off_percent(part.bytes, expected):+.3f}"
        rows.append((part.name, f"{part.bytes:,}", "" if expected is None else f"{expected:,}", off))
    whole = sum(predicted.values())
    off = f"{off_percent(manifest.bytes, whole):+.3f}"
    rows.append(("file", f"{manifest.bytes:,}", f"{whole:,}", off))
    columns = ("part", "bytes", "predicted", "off, %")
    print_table(f"{recipe}: {manifest.bytes / 1e6:.2f} MB", columns, rows, markdown=markdown)


def judge(checkpoint: str, recipe: str, manifest: Manifest, predicted: dict[str, int]) -> list[Figure]:
    """Every predicted part within a percent, all bytes of the file accounted for, and the file within its promise."""
    parts = {part.name: part.bytes for part in manifest.parts}
    figures = [
        at_most(f"{recipe}: {name} off prediction", abs(off_percent(parts.get(name, 0), size)), MAX_PART_PERCENT, "%")
        for name, size in predicted.items()
    ]
    # A part without a prediction (the graph) could hide what was predicted elsewhere; the whole cannot.
    whole = abs(off_percent(manifest.bytes, sum(predicted.values())))
    figures.append(at_most(f"{recipe}: file off the sum predicted", whole, MAX_PART_PERCENT, "%"))
    unaccounted = abs(manifest.bytes - sum(parts.values()))
    figures.append(at_most(f"{recipe}: bytes of the file in no part, or in two", unaccounted, 0, "bytes"))
    if (checkpoint, recipe) in MAX_FILE_MB:
        figures.append(at_most(f"{recipe}: file", manifest.bytes / 1e6, MAX_FILE_MB[checkpoint, recipe], "MB"))
    return figures


def off_percent(measured: int, expected: int) -> float:
    return 100 * (measured - expected) / expected


if __name__ == "__main__":
    sys.exit(main())
