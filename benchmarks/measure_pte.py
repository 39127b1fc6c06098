"""Measure one .pte in one fresh process: what ExecuTorch's Python runtime loads, initialises, runs and keeps resident.

In:  a .pte whose `forward` takes tokens int64 [1, T] and start int64 [1], and gives last-token logits.
Out: one JSON object on stdout, the fields of `Measurement`.

    python -m benchmarks.measure_pte out/model.pte --threads 2

A process measures one file, because memory freed by one model would hide what the next one allocates.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

PREFILL_REPEATS = 5
WARM_UP_TOKENS = 8
SINGLE_OPENMP_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Resident:
    """Resident memory of this process above what it held after its imports.

    dirty_mib: anonymous pages (RssAnon): what a phone kills for.
    clean_mib: file-backed pages (RssFile), the .pte's and the libraries': what a phone evicts.
    """

    dirty_mib: float
    clean_mib: float


@dataclass(frozen=True)
class Measurement:
    """What one process measured. Milliseconds are wall time; the .pte is in the page cache from the start.

    load_ms: program mapped, its header read. init_ms: `forward` loaded, so the backend has packed its weights.
    first_token_ms: the first call ever, prompt_tokens long. prefill_tokens_per_s: the same prompt again, median.
    decode_tokens_per_s: 1 / median seconds a token, one token a call, after the prompt and WARM_UP_TOKENS.
    peak_mib: most ever resident (VmHWM) above the imports. process_threads: at the end.
    delegate_threads: XNNPACK's pool. kv_slots, kv_rows, kv_row_values: KV caches, tokens in each, key and value
        numbers a token; from the program's metadata, 0 where it has none.
    """

    file: str
    sha256: str
    file_bytes: int
    delegate_threads: int
    prompt_tokens: int
    new_tokens: int
    load_ms: float
    init_ms: float
    first_token_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
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
        SystemExit: the child failed; the end of its stderr is the message.
    """
    command = [sys.executable, "-m", "benchmarks.measure_pte", str(pte.resolve()), "--threads", str(threads)]
    command += ["--prompt-tokens", str(prompt_tokens), "--new-tokens", str(new_tokens)]
    child = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **SINGLE_OPENMP_THREAD},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        sys.exit(f"error: {pte}: measuring failed: {child.stderr.strip()[-1500:]}")
    return read_measurement(json.loads(child.stdout))


def read_measurement(values: dict[str, object]) -> Measurement:
    """A Measurement from its JSON object."""
    resident = {"after_load", "after_init", "at_end"}
    known = {field.name for field in fields(Measurement)}
    assert set(values) == known, f"not a Measurement: {sorted(set(values) ^ known)}"
    return Measurement(**{key: Resident(**v) if key in resident else v for key, v in values.items()})  # type: ignore[arg-type]


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
    prompt, start = torch.arange(prompt_tokens)[None] + 3, torch.zeros(1, dtype=torch.int64)
    sha256 = _sha256(pte)  # which also brings the file into the page cache

    _return_freed_memory()
    _reset_peak()
    before = _memory_mib()

    began = time.perf_counter()
    program = runtime.load_program(pte, verification=Verification.Minimal)  # what the C++ Module of the apps asks for
    loaded = time.perf_counter()
    after_load = _above(before)
    began_init = time.perf_counter()
    forward = program.load_method("forward")
    initialised = time.perf_counter()
    assert forward is not None
    after_init = _above(before)

    prefill_s = [_time_call(forward, prompt, start) for _ in range(1 + PREFILL_REPEATS)]
    token, decode_s = torch.zeros(1, 1, dtype=torch.int64), []
    for step in range(WARM_UP_TOKENS + new_tokens):
        token[0, 0], start[0] = 3 + step, prompt_tokens + step  # fixed tokens: no sampling in the time
        decode_s.append(_time_call(forward, token, start))
    at_end, peak_mib = _above(before), _status_mib("VmHWM") - sum(before)
    return Measurement(
        file=str(pte),
        sha256=sha256,
        file_bytes=pte.stat().st_size,
        delegate_threads=portable_lib._threadpool_get_thread_count(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        load_ms=1e3 * (loaded - began),
        init_ms=1e3 * (initialised - began_init),
        first_token_ms=1e3 * prefill_s[0],
        prefill_tokens_per_s=prompt_tokens / statistics.median(prefill_s[1:]),
        decode_tokens_per_s=1 / statistics.median(decode_s[WARM_UP_TOKENS:]),
        imports_mib=sum(before),
        after_load=after_load,
        after_init=after_init,
        at_end=at_end,
        peak_mib=peak_mib,
        process_threads=_process_threads(),
        kv_slots=_constant(program, "get_n_executions"),
        kv_rows=_constant(program, "get_max_context_len"),
        kv_row_values=2 * _constant(program, "get_n_kv_heads") * _constant(program, "get_head_dim"),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _time_call(forward: object, tokens: object, start: object) -> float:
    began = time.perf_counter()
    forward.execute([tokens, start])  # type: ignore[attr-defined]
    return time.perf_counter() - began


def _constant(program: object, method: str) -> int:
    if method not in program.method_names:  # type: ignore[attr-defined]
        return 0
    return int(program.load_method(method).execute([])[0])  # type: ignore[attr-defined]


def _return_freed_memory() -> None:
    """Free pages the imports left in the heap would take in what the model allocates, and hide it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak() -> None:
    """Restart VmHWM from the present, where the kernel lets us (clear_refs, proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory_mib() -> tuple[float, float]:
    """Anonymous and file-backed resident MiB, exact: smaps_rollup walks the pages, the counters of status lag."""
    sizes = {key: int(value.split()[0]) / 1024 for key, value in _colon_lines("/proc/self/smaps_rollup")}
    return sizes["Anonymous"], sizes["Rss"] - sizes["Anonymous"]


def _above(before: tuple[float, float]) -> Resident:
    dirty_mib, clean_mib = _memory_mib()
    return Resident(dirty_mib - before[0], clean_mib - before[1])


def _status_mib(key: str) -> float:
    return int(dict(_colon_lines("/proc/self/status"))[key].split()[0]) / 1024


def _process_threads() -> int:
    return int(dict(_colon_lines("/proc/self/status"))["Threads"])


def _colon_lines(path: str) -> Iterator[tuple[str, str]]:
    for line in Path(path).read_text().splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            yield key, value.strip()


@contextlib.contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """ExecuTorch's C++ logs write to file descriptor 1: send it to stderr, so stdout holds the JSON alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def main() -> None:
    """Measure the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pte", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="XNNPACK's threads")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    asked = parser.parse_args()
    os.environ.update(SINGLE_OPENMP_THREAD)  # read when libgomp is loaded, which is below
    with _logs_on_stderr():
        measured = measure_here(
            asked.pte, threads=asked.threads, prompt_tokens=asked.prompt_tokens, new_tokens=asked.new_tokens
        )
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
