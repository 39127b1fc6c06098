"""Table: what `check` predicts an artifact keeps in memory against what a process was measured to keep.

Models of real shape and little depth (real_shapes.py; random weights: bytes depend on shapes alone), exported once into
--work, each measured in a process of its own with its whole context filled (measure_memory.py). Both figures are above the
imports of that process, so the term "process" of the model is left out here.

    python -m benchmarks.memory_model --work work/memory                 every case: 34, some 15 minutes of exports
    python -m benchmarks.memory_model --work work/memory --only w8 onnx  those with one of these words in their name

VmHWM counts a tied table's pages twice while a .pte's head is packed, since it is mapped twice: so does the prediction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.export_child import mobile_export_program, run_export
from benchmarks.machine import ONNX_PACKAGES, PTE_PACKAGES, describe_machine
from benchmarks.measure_memory import MemoryMeasurement, measure_in_child
from benchmarks.real_shapes import SHAPES, write_real_shape
from benchmarks.report import Figure, add_report_options, at_least, at_most, finish, print_table
from benchmarks.rounds import say
from mobile_export.budget.facts import facts_of_manifest
from mobile_export.budget.interval import total
from mobile_export.budget.memory import estimate_memory
from mobile_export.budget.pte_memory import PROCESS, tied_source_bytes
from mobile_export.budget.terms import MIB
from mobile_export.manifest import read_manifest

BLOCKS = {"smollm2-135m": 6, "mobilellm-350m": 4}
MAX_ERROR_PERCENT = 5.0
MIN_CASES = 24
PROMPT_CHUNK = 128


@dataclass(frozen=True)
class Case:
    """One export. shared: each block twice in a row. options: of the exporter, as typed."""

    shape: str
    form: str
    recipe: str
    context: int
    kv: str = "float32"
    shared: bool = False
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        words = (self.shape, self.form, self.recipe, str(self.context), f"KV {self.kv}", "LS" if self.shared else "base")
        return ", ".join((*words, *self.options))

    def command(self, checkpoint: Path, folder: Path) -> list[str]:
        asked = [*mobile_export_program(), self.form, str(checkpoint), "--recipe", self.recipe, "--kv", self.kv, "--no-verify"]
        asked += ["--out", str(folder), "--max-context", str(self.context), *self.options]
        return [*asked, "--schedule", "immediate"] if self.shared else asked


def cases() -> list[Case]:
    """Two shapes x recipes x contexts x caches x base and layer-shared, thinned to what differs; then options, then ONNX."""
    small, large = BLOCKS
    chosen = [
        Case(small, "pte", recipe, context) for recipe in ("w4-fast", "w8-fast", "w4-all-fast") for context in (256, 2048)
    ]
    chosen += [Case(small, "pte", "w4-fast", context, kv, shared=True) for context in (512, 1024) for kv in ("float32", "int8")]
    chosen += [Case(small, "pte", "w4-fast", 1024, "int8"), Case(small, "pte", "fp32", 512)]
    chosen += [Case(large, "pte", recipe, 1024, kv) for recipe in ("w4-fast", "w8-fast") for kv in ("float32", "int8")]
    chosen += [Case(large, "pte", "w4-fast", 2048, shared=True), Case(large, "pte", "w4-all-fast", 512)]
    chosen += [
        Case(small, "pte", "w4-fast", 512, options=("--attention", "core")),
        Case(large, "pte", "w4-fast", 1024, options=("--attention", "core")),
        Case(small, "pte", "w4-fast", 512, options=("--max-prompt", "32")),
    ]
    chosen += [Case(shape, "onnx", recipe, 512) for shape in BLOCKS for recipe in ("w4-fast", "w8-fast", "w4-all-fast")]
    chosen += [Case(shape, "onnx", "w4-fast", 2048, shared=True) for shape in BLOCKS]
    chosen += [
        Case(small, "onnx", "w4-fast", 2048),
        Case(large, "onnx", "w4-fast", 1024, "int8"),
        Case(small, "onnx", "fp32", 512),
        Case(small, "onnx", "w4-fast", 512, options=("--portable",)),
        Case(small, "onnx", "w4-all-fast", 512, options=("--all-logits",)),
    ]
    return chosen


@dataclass(frozen=True)
class Result:
    """MiB above the imports: most dirty, most resident, as predicted and as measured."""

    case: str
    predicted_dirty_mib: float
    predicted_resident_mib: float
    measured: MemoryMeasurement

    @property
    def dirty_error_percent(self) -> float:
        return 100 * (self.predicted_dirty_mib / self.measured.peak_dirty_mib - 1)

    @property
    def resident_error_percent(self) -> float:
        return 100 * (self.predicted_resident_mib / self.measured.peak_mib - 1)


def main() -> int:
    """Export what is missing, predict, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints and exports; kept, and used again")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only cases with one of these in their name")
    add_report_options(parser)
    asked = parser.parse_args()
    machine = describe_machine((*PTE_PACKAGES, *ONNX_PACKAGES))
    print(machine)
    chosen = [case for case in cases() if not asked.only or any(word in case.name for word in asked.only)]
    if not chosen:
        sys.exit(
            f"error: --only {' '.join(asked.only)}: no case has such a word; the cases: {'; '.join(c.name for c in cases())}"
        )
    results = [result_of(case, asked.work.resolve()) for case in chosen]
    print_results(results, markdown=asked.markdown)
    measured = [{**asdict(result), "case": result.case} for result in results]
    return finish(asked, machine, measured, judge(results))


def result_of(case: Case, work: Path) -> Result:
    """One case: exported where it is missing, predicted from its manifest, measured."""
    checkpoint = work / f"{case.shape}-{BLOCKS[case.shape]}"
    if not (checkpoint / "config.json").is_file():
        write_real_shape(SHAPES[case.shape], BLOCKS[case.shape], checkpoint)
    folder = work / case.name.replace(", ", "_").replace(" ", "-")
    if not (folder / "manifest.json").is_file():
        say(f"exporting {case.name}")
        run_export(case.command(checkpoint, folder))
    manifest = read_manifest(folder)
    facts = facts_of_manifest(manifest, folder)
    memory = estimate_memory(facts).without([PROCESS])
    twice = tied_source_bytes(facts) if facts.format == "pte" else 0
    load, run = (total(term.bytes for term in memory.during(when)).likely for when in ("load", "run"))
    say(f"measuring {case.name}")
    measured = measure_in_child(folder, prompt_chunk=min(PROMPT_CHUNK, facts.prompt_chunk))
    return Result(case.name, memory.peak_dirty.likely / MIB, max(load + twice, run) / MIB, measured)


def print_results(results: Sequence[Result], *, markdown: bool) -> None:
    rows = [
        (
            result.case,
            f"{result.predicted_dirty_mib:.1f}",
            f"{result.measured.peak_dirty_mib:.1f}",
            f"{result.dirty_error_percent:+.1f}",
            f"{result.predicted_resident_mib:.1f}",
            f"{result.measured.peak_mib:.1f}",
            f"{result.resident_error_percent:+.1f}",
        )
        for result in results
    ]
    columns = ("case", "dirty, predicted", "measured", "off, %", "resident, predicted", "measured", "off, %")
    print_table("Peak memory above the imports, MiB", columns, rows, markdown=markdown)


def judge(results: Sequence[Result]) -> list[Figure]:
    """The figures the project promises."""
    dirty = [abs(result.dirty_error_percent) for result in results]
    resident = [abs(result.resident_error_percent) for result in results]
    return [
        at_least("cases", len(results), MIN_CASES, ""),
        at_most("peak dirty, worst case", max(dirty), MAX_ERROR_PERCENT, "%"),
        at_most("peak resident, worst case", max(resident), MAX_ERROR_PERCENT, "%"),
    ]


if __name__ == "__main__":
    sys.exit(main())
