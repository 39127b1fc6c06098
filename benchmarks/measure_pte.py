"""Measure one .pte in one fresh process: what ExecuTorch's Python runtime loads, initialises, runs and keeps resident.

In:  a .pte whose `forward` takes tokens int64 [1, T] and start int64 [1], and gives last-token logits.
Out: one JSON object on stdout, the fields of `Measurement`.

    python -m benchmarks.measure_pte out/model.pte --threads 2

A process measures one file, because memory freed by one model would hide what the next one allocates.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.json_child import run_for_json
from benchmarks.process_memory import ImportsMemory, Resident, process_threads
from benchmarks.step_times import StepTimes, time_steps
from benchmarks.warm_file import WarmFile, warm
from mobile_export.measure.streams import stdout_on_stderr

SINGLE_OPENMP_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Measurement:
    """What one process measured. Milliseconds are wall time; the .pte is in the page cache from the start.

    load_ms: program mapped, its header read. init_ms: `forward` loaded, so the backend has packed its weights.
    peak_mib: most ever resident (VmHWM) above the imports. process_threads: at the end.
    delegate_threads: XNNPACK's pool. kv_slots, kv_rows, kv_row_values: KV caches, tokens in each, key and value
        numbers a token; from the program's metadata, 0 where it has none.
    """

    file: WarmFile
    delegate_threads: int
    load_ms: float
    init_ms: float
    steps: StepTimes
    imports_mib: float
    after_load: Resident
    after_init: Resident
    at_end: Resident
    peak_mib: float
    process_threads: int
    kv_slots: int
    kv_rows: int
    kv_row_values: int


def measure_in_child(pte: Path, *, threads: int, prompt_tokens: int = 128, new_tokens: int = 64) -> Measurement:
    """Measure a .pte in a process of its own.

    Raises:
        ChildError: it failed.
    """
    from pydantic import TypeAdapter

    command = [sys.executable, "-m", "benchmarks.measure_pte", str(pte.resolve()), "--threads", str(threads)]
    command += ["--prompt-tokens", str(prompt_tokens), "--new-tokens", str(new_tokens)]
    return TypeAdapter(Measurement).validate_python(run_for_json(command, SINGLE_OPENMP_THREAD))


def measure_here(pte: Path, *, threads: int, prompt_tokens: int, new_tokens: int) -> Measurement:
    """Measure a .pte in this process, which must not have run a model before."""
    import executorch.kernels.quantized  # noqa: F401  registers the embedding operators
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers llama::custom_sdpa
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime, Verification

    # The attention's OpenMP threads and XNNPACK's pool would fight for the cores (a fifth of the speed at times), and
    # no phone has the former: only XNNPACK's pool is swept.
    torch.set_num_threads(1)
    portable_lib._unsafe_reset_threadpool(threads)
    runtime = Runtime.get()
    file = warm(pte)
    memory = ImportsMemory()

    began = time.perf_counter()
    program = runtime.load_program(pte, verification=Verification.Minimal)  # what the C++ Module of the apps asks for
    loaded = time.perf_counter()
    after_load = memory.above()
    began_init = time.perf_counter()
    forward = program.load_method("forward")
    initialised = time.perf_counter()
    assert forward is not None
    after_init = memory.above()

    steps = time_steps(
        lambda tokens, start: forward.execute([torch.tensor([tokens]), torch.tensor([start])]), prompt_tokens, new_tokens
    )
    at_end, peak_mib = memory.above(), memory.peak_mib()
    return Measurement(
        file=file,
        delegate_threads=portable_lib._threadpool_get_thread_count(),
        load_ms=1e3 * (loaded - began),
        init_ms=1e3 * (initialised - began_init),
        steps=steps,
        imports_mib=memory.mib,
        after_load=after_load,
        after_init=after_init,
        at_end=at_end,
        peak_mib=peak_mib,
        process_threads=process_threads(),
        kv_slots=_constant(program, "get_n_executions"),
        kv_rows=_constant(program, "get_max_context_len"),
        kv_row_values=2 * _constant(program, "get_n_kv_heads") * _constant(program, "get_head_dim"),
    )


def _constant(program: object, method: str) -> int:
    if method not in program.method_names:  # type: ignore[attr-defined]
        return 0
    return int(program.load_method(method).execute([])[0])  # type: ignore[attr-defined]


def main() -> None:
    """Measure the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pte", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="XNNPACK's threads")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    asked = parser.parse_args()
    os.environ.update(SINGLE_OPENMP_THREAD)  # read when libgomp is loaded, which is below
    with stdout_on_stderr():
        measured = measure_here(
            asked.pte, threads=asked.threads, prompt_tokens=asked.prompt_tokens, new_tokens=asked.new_tokens
        )
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
