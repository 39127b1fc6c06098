"""Table: SmolLM2-135M in four runtimes: dirty memory, warm start, rates. Ours, ExecuTorch's stock path, onnxruntime, llama.cpp.

Ours twice: weights packed at load, and mapped from a packed file with an int8 KV cache. Context 512 in all; llama.cpp keeps its
own float16 cache. Each is measured in a process of its own, in turn, and what its imports took is not counted.

    python -m benchmarks.stock_path smollm2-135m --out work/stock.pte                           once, five minutes
    python -m venv work/llama && work/llama/bin/pip install llama-cpp-python pydantic           once, minutes of compiling
    python -m benchmarks.peers --work work/peers --stock work/stock.pte --llama-python work/llama/bin/python

Without --stock or --llama-python that column is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.export_child import onnx_command, run_export
from benchmarks.machine import ONNX_PACKAGES, PTE_PACKAGES, describe_machine
from benchmarks.packaged_gguf import packaged_as
from benchmarks.report import Figure, add_report_options, at_least, at_most, finish
from benchmarks.rounds import Row, as_json, compare, print_comparison, say
from benchmarks.runner import ROWS, decode_rate, dirty_at_end, exported, measured_in_turn
from mobile_export.measure.build import build_runner
from mobile_export.measure.measurement import Job, Measurement
from mobile_export.units import counted

OURS, SMALLEST, STOCK, ONNX, LLAMA = "ours", "ours, packed file, int8 KV", "stock path", "onnxruntime", "llama.cpp Q4_0"
CHECKPOINT = "smollm2-135m"
MAX_DIRTY_MB, MAX_WARM_START_S = 30.0, 0.08
MB_A_MIB = 2**20 / 1e6


def start_s(measured: Measurement) -> float:
    """From nothing loaded to ready for a prompt: onnxruntime and llama.cpp do in the one what others do in the other."""
    return measured.load_s + measured.init_s


TABLE = (Row[Measurement]("warm start, ms", lambda m: 1e3 * start_s(m), 0), *ROWS[2:])


def main() -> int:
    """Export what is missing, measure in turn, print the tables, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the exports; kept, and used again")
    parser.add_argument("--stock", type=Path, metavar="FILE", help="a .pte of benchmarks.stock_path, context 512")
    parser.add_argument("--llama-python", metavar="PYTHON", help="a Python that has llama-cpp-python and pydantic")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    add_report_options(parser, runs=7)
    asked = parser.parse_args()
    machine = describe_machine((*PTE_PACKAGES, *ONNX_PACKAGES))
    print(machine)
    work = asked.work.resolve()
    cpp = [str(build_runner())]
    ways = {
        OURS: (cpp, Job(exported(work / "float32-kv", CHECKPOINT))),
        SMALLEST: (
            cpp,
            Job(exported(work / "int8-kv", CHECKPOINT, "--kv", "int8"), packed_weights=work / "int8-kv.packed"),
        ),
        ONNX: ([sys.executable, "-m", "mobile_export.measure.onnx_runner"], Job(exported_onnx(work / "onnx"))),
    }
    if asked.stock:
        ways[STOCK] = (cpp, Job(asked.stock.resolve()))
    if asked.llama_python:
        runner = [asked.llama_python, "-m", "benchmarks.measure_llama_cpp"]
        ways[LLAMA] = (runner, Job(packaged_as("Q4_0", work / "q4_0.gguf", asked.llama_python)))
    by_threads = measured_in_turn(ways, asked.threads, asked.runs)
    for threads, runs in by_threads.items():
        title = (
            f"SmolLM2-135M in its runtimes, {counted(threads, 'thread')}: prompt 128, 64 new tokens, context 512; "
            f"median (least to largest) of {counted(asked.runs, 'round')}"
        )
        print_comparison(title, TABLE, runs, OURS, markdown=asked.markdown)
    runtimes = "; ".join(f"{name}: {runs[0].runtime}" for name, runs in next(iter(by_threads.values())).items())
    print(f"\n{runtimes}")
    return finish(asked, machine, as_json(by_threads), judge(by_threads))


def exported_onnx(folder: Path) -> Path:
    """Our model.onnx, exported where it is not there yet."""
    if not (folder / "model.onnx").is_file():
        say(f"exporting {folder.name}")
        run_export(onnx_command(CHECKPOINT, folder))
    return folder / "model.onnx"


def judge(by_threads: Mapping[int, Mapping[str, Sequence[Measurement]]]) -> list[Figure]:
    """The figures the project promises, and where ours stand against the peers."""
    first = next(iter(by_threads.values()))
    dirty_mb = max(map(dirty_at_end, first[SMALLEST])) * MB_A_MIB
    figures = [
        at_most(f"{SMALLEST}: dirty at the end", dirty_mb, MAX_DIRTY_MB, "MB"),
        at_most(f"{SMALLEST}: warm start", statistics.median(map(start_s, first[SMALLEST])), MAX_WARM_START_S, "s"),
    ]
    for threads, runs in by_threads.items():
        for name in runs:
            if name not in (OURS, SMALLEST):
                ratio = compare(runs[OURS], runs[name], decode_rate)
                figures.append(at_least(f"decode, ours against {name}, {counted(threads, 'thread')}", ratio, 1.0))
    return figures


if __name__ == "__main__":
    sys.exit(main())
