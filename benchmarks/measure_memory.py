"""Measure what one artifact keeps resident in one fresh process, its whole KV cache filled: load, init, every row written.

In:  a folder that mobile-export wrote, .pte or ONNX.
Out: one JSON object on stdout, the fields of `MemoryMeasurement`.

    python -m benchmarks.measure_memory out --prompt-chunk 128

A process measures one artifact, because memory freed by one model would hide what the next one allocates. Peak dirty
memory is sampled by a thread every millisecond; the kernel keeps a high-water mark of the total only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.json_child import run_for_json
from benchmarks.measure_pte import SINGLE_OPENMP_THREAD
from benchmarks.process_memory import ImportsMemory, Resident
from benchmarks.warm_file import warm
from mobile_export.manifest import Manifest, read_manifest
from mobile_export.measure.streams import stdout_on_stderr

INTERVAL_S = 0.001


@dataclass(frozen=True)
class MemoryMeasurement:
    """MiB above the process's imports.

    after_load: session or method ready, nothing run. at_end: every KV row written, one token after it.
    peak_dirty_mib: most dirty ever seen by the sampler or at the two stops. peak_mib: most resident (VmHWM).
    imports: what the imports themselves left, runtime libraries included.
    """

    context: int
    prompt_chunk: int
    after_load: Resident
    at_end: Resident
    peak_dirty_mib: float
    peak_mib: float
    imports_mib: float


def measure_in_child(folder: Path, *, prompt_chunk: int, context: int | None = None) -> MemoryMeasurement:
    """Measure an artifact in a process of its own.

    Args:
        context: KV rows to allocate and fill, where the runtime leaves that open (ONNX); else the artifact's.
    Raises:
        ChildError: it failed.
    """
    from pydantic import TypeAdapter

    command = [sys.executable, "-m", "benchmarks.measure_memory", str(folder.resolve()), "--prompt-chunk", str(prompt_chunk)]
    command += ["--context", str(context)] if context else []
    return TypeAdapter(MemoryMeasurement).validate_python(run_for_json(command, SINGLE_OPENMP_THREAD))


def measure_here(folder: Path, prompt_chunk: int, context: int | None) -> MemoryMeasurement:
    """Measure an artifact in this process, which must not have run a model before."""
    manifest = read_manifest(folder)
    context = context or manifest.max_context
    load = _load_pte if manifest.format == "pte" else _load_onnx
    prepare, vocab = load(folder, manifest, context), int(manifest.spec["vocab_size"])
    for file in manifest.files:
        warm(folder / file.name)
    memory = ImportsMemory()
    with _sampled_dirty() as most_dirty:
        step = prepare()
        after_load = memory.above()
        for start in range(0, context - 1, prompt_chunk):
            length = min(prompt_chunk, context - 1 - start)
            step([_token(start + n, vocab) for n in range(length)], start)
        step([_token(context - 1, vocab)], context - 1)
        at_end = memory.above()
    sampled_mib = most_dirty() - memory.dirty_mib
    return MemoryMeasurement(
        context=context,
        prompt_chunk=prompt_chunk,
        after_load=after_load,
        at_end=at_end,
        peak_dirty_mib=max(sampled_mib, after_load.dirty_mib, at_end.dirty_mib),
        peak_mib=memory.peak_mib(),
        imports_mib=memory.mib,
    )


def _token(position: int, vocab: int) -> int:
    """A token drawn at random, the same for the same position."""
    return random.Random(position).randrange(vocab)


Step = Callable[[list[int], int], object]


def _load_pte(folder: Path, manifest: Manifest, context: int) -> Callable[[], Step]:
    """Import what a .pte needs; gives what loads it and gives its step."""
    import executorch.kernels.quantized  # noqa: F401  registers the embedding operators
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers llama::custom_sdpa
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime, Verification

    torch.set_num_threads(1)
    portable_lib._unsafe_reset_threadpool(1)
    runtime = Runtime.get()

    def prepare() -> Step:
        program = runtime.load_program(folder / manifest.file, verification=Verification.Minimal)
        forward = program.load_method("forward")
        assert forward is not None
        return lambda tokens, start: forward.execute([torch.tensor([tokens]), torch.tensor([start])])

    return prepare


def _load_onnx(folder: Path, manifest: Manifest, context: int) -> Callable[[], Step]:
    """Import onnxruntime; gives what makes the session and its cache."""
    import onnxruntime  # noqa: F401

    from benchmarks.measure_onnx import BoundSession

    def prepare() -> Step:
        session = BoundSession(folder, threads=1)
        session.kv_rows = context
        session.allocate(context)
        return session.step

    return prepare


@contextmanager
def _sampled_dirty() -> Iterator[Callable[[], float]]:
    """Sample this process's anonymous resident MiB while the block runs."""
    most, stop = 0.0, threading.Event()

    def sample() -> None:
        nonlocal most
        while not stop.wait(INTERVAL_S):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    most = max(most, int(line.split()[1]) / 1024)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: most
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Measure the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt-chunk", type=int, default=128)
    parser.add_argument("--context", type=int)
    asked = parser.parse_args()
    os.environ.update(SINGLE_OPENMP_THREAD)  # read when libgomp is loaded, which is below
    with stdout_on_stderr():
        measured = measure_here(asked.folder, asked.prompt_chunk, asked.context)
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
