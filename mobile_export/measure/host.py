"""Measures an artifact on this machine: a process a run, numbers of threads taken in turn, then what else was asked for."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mobile_export import __version__
from mobile_export.cache import cache_folder
from mobile_export.errors import MissingTool, UsageError
from mobile_export.manifest import FileDigest, Manifest, check_files, folder_of, read_manifest
from mobile_export.measure import build
from mobile_export.measure.launch import launch
from mobile_export.measure.measurement import Job, Measurement, Resident
from mobile_export.measure.profile import (
    SCHEMA_VERSION,
    AtThreads,
    ColdStart,
    CurvePoint,
    Machine,
    Memory,
    OperatorTime,
    Profile,
    spread,
)
from mobile_export.units import counted

LOGITS_OF = tuple(range(3, 11))
CURVE_STEP = 32  # tokens a point of the curve is the median of
WEIGHTS = {"plain": "packed at load", "cache": "weight cache", "file": "packed file"}


@dataclass(frozen=True)
class Request:
    """What to measure.

    threads: numbers to try; none given: 1, 2, 4 and so on up to all cores.
    weights: "plain"; "cache", equal weights packed once by XNNPACK's weight cache; "file", packed weights mapped from a file.
    runner: "auto", the C++ one where it can be built; "cpp"; "python"; or an executable that takes `Job.arguments`.
    affinity: cores to stay on; none given: all. timeout_s: of each process.
    """

    threads: tuple[int, ...] = ()
    prompt_tokens: int = 128
    new_tokens: int = 64
    runs: int = 5
    weights: str = "plain"
    runner: str = "auto"
    affinity: tuple[int, ...] = ()
    cold: bool = True
    operators: bool = False
    curve: bool = False
    timeout_s: float = 600


def profile_artifact(artifact: Path, request: Request, say: Callable[[str], None], warn: Callable[[str], None]) -> Profile:
    """Measure an artifact.

    Args:
        artifact: its folder, or the file in it.
    Raises:
        UsageError: the request contradicts the artifact or itself.
        InputError: no artifact, its file is not the manifest's, or the runtime refuses it.
        MissingTool: the runner asked for cannot be had, crashed, hangs or prints rubbish.
    """
    manifest = read_manifest(artifact)
    folder = folder_of(artifact)
    _check(request, manifest, artifact)
    check_files(folder, manifest)  # reading them brings them into the page cache
    files = manifest.files
    command = _runner(request, manifest, say, warn)
    job = Job(
        model=(folder / manifest.file).resolve(),
        prompt_tokens=request.prompt_tokens,
        new_tokens=request.new_tokens,
        affinity=request.affinity,
        weight_cache=request.weights == "cache",
        packed_weights=_packed_weights(files[0]) if request.weights == "file" else None,
        logits_of=LOGITS_OF[: manifest.max_context],
    )

    def measure(job: Job) -> Measurement:
        return launch(command, job, timeout_s=request.timeout_s)

    threads = request.threads or _powers_of_two(_cores(request.affinity))
    say("warming up")
    measure(replace(job, threads=threads[0]))  # also makes the packed weights' file
    cold = _cold_start(measure, replace(job, threads=threads[0]), [folder / file.name for file in files], say, request)
    measured = _in_turn(measure, job, threads, request.runs, say)
    by_threads = [_summary(runs) for runs in measured.values()]
    best = max(by_threads, key=lambda each: each.decode_tokens_per_s.median).threads
    at_best = replace(job, threads=best)
    return Profile(
        schema_version=SCHEMA_VERSION,
        tool=f"mobile-export {__version__}",
        artifact=str(artifact),
        format=manifest.format,
        recipe=str(manifest.recipe["name"]),
        files=files,
        machine=this_machine(),
        runtime=measured[best][0].runtime,
        weights=WEIGHTS[request.weights],
        prompt_tokens=request.prompt_tokens,
        new_tokens=request.new_tokens,
        runs=request.runs,
        by_threads=by_threads,
        best_threads=best,
        cold=cold,
        operators=_operators(measure, at_best, say) if request.operators else None,
        curve=_curve(measure, at_best, manifest.max_context, say) if request.curve else None,
        logits=measured[best][0].logits,
    )


def this_machine() -> Machine:
    """What profile.json says of where it was measured."""
    import psutil

    lines = build.cpu().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(system, name or "unknown", _cores(()), psutil.virtual_memory().total / 2**20)


# --- before anything is run ----------------------------------------------------------------------------------------------


def _check(request: Request, manifest: Manifest, artifact: Path) -> None:
    if manifest.package:
        what = "Core ML runs on Apple's systems alone, and our interpreter's times say nothing of them"
        raise UsageError(str(artifact), what, "`mobile-export check` predicts what it keeps in memory")
    tokens = request.prompt_tokens + request.new_tokens
    if tokens > manifest.max_context:
        what = f"{tokens} tokens, the artifact's context is {manifest.max_context}"
        raise UsageError("--prompt-tokens, --new-tokens", what, "ask for fewer")
    if manifest.pte is None and request.weights != "plain":
        raise UsageError(f"--weights {request.weights}", "is an option of XNNPACK, for .pte files", "leave it out")
    if manifest.pte is None and request.operators:
        raise UsageError("--ops", "reads ExecuTorch's trace, this is no .pte", "leave it out")
    if request.runner == "python" and (request.operators or request.weights != "plain"):
        option = "--ops" if request.operators else f"--weights {request.weights}"
        raise UsageError(option, "ExecuTorch's Python runtime has no such option", "leave out --runner python")
    beyond = [core for core in request.affinity if core not in os.sched_getaffinity(0)]
    if beyond:
        raise UsageError(f"--affinity {beyond[0]}", "no such core here", f"name some of {sorted(os.sched_getaffinity(0))}")


def _runner(request: Request, manifest: Manifest, say: Callable[[str], None], warn: Callable[[str], None]) -> list[str]:
    """The command of the runner."""
    if request.runner not in ("auto", "cpp", "python"):
        return [request.runner]
    if manifest.onnx:
        return [sys.executable, "-m", "mobile_export.measure.onnx_runner"]
    if request.runner != "python":
        say("building the runner, once")
        try:
            return [str(build.build_runner())]
        except MissingTool as error:
            if request.runner == "cpp" or request.operators or request.weights != "plain":
                raise
            warn(f"{error.where}: {error.what}; measuring in ExecuTorch's Python runtime, whose attention is slower")
    return [sys.executable, "-m", "mobile_export.measure.pte_runner"]


def _packed_weights(model: FileDigest) -> Path:
    """Where packed weights are kept: they belong to one model, one runtime and one CPU."""
    belongs = f"{model.sha256}\0{importlib.metadata.version('executorch')}\0{build.cpu()}"
    folder = cache_folder() / "packed"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(belongs.encode()).hexdigest()[:16]}.xnnpack"


def _cores(affinity: Sequence[int]) -> int:
    return len(affinity or os.sched_getaffinity(0))


def _powers_of_two(cores: int) -> tuple[int, ...]:
    """Numbers of threads to try.

    >>> _powers_of_two(1), _powers_of_two(2), _powers_of_two(6)
    ((1,), (1, 2), (1, 2, 4, 6))
    """
    powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    return (*powers, cores)


# --- runs ----------------------------------------------------------------------------------------------------------------


def _in_turn(
    measure: Callable[[Job], Measurement], job: Job, threads: Sequence[int], runs: int, say: Callable[[str], None]
) -> dict[int, list[Measurement]]:
    """Threads -> a measurement a run. Forth, back and forth: a machine that slows down steadily favours none."""
    measured: dict[int, list[Measurement]] = {count: [] for count in threads}
    for run in range(runs):
        for count in threads if run % 2 == 0 else reversed(threads):
            say(f"run {run + 1} of {runs}, {counted(count, 'thread')}")
            measured[count].append(measure(replace(job, threads=count)))
    return measured


def _summary(runs: Sequence[Measurement]) -> AtThreads:
    def mib(kib: Callable[[Measurement], int]) -> float:
        return statistics.median(kib(run) for run in runs) / 1024

    def dirty(stage: Callable[[Measurement], Resident]) -> float:
        return mib(lambda run: stage(run).rss_anon_kib - run.at_start.rss_anon_kib)

    return AtThreads(
        threads=runs[0].threads,
        load_s=spread([run.load_s for run in runs]),
        init_s=spread([run.init_s for run in runs]),
        first_token_s=spread([run.first_token_s for run in runs]),
        prefill_tokens_per_s=spread([run.prompt_tokens / statistics.median(run.prefill_s) for run in runs]),
        decode_tokens_per_s=spread([1 / statistics.median(_tokens(run)) for run in runs]),
        slow_token_s=spread([sorted(_tokens(run))[int(0.99 * len(_tokens(run)))] for run in runs]),
        memory=Memory(
            dirty_after_load_mib=dirty(lambda run: run.after_load),
            dirty_after_init_mib=dirty(lambda run: run.after_init),
            dirty_at_end_mib=dirty(lambda run: run.at_end),
            clean_at_end_mib=mib(lambda run: run.at_end.rss_file_kib - run.at_start.rss_file_kib),
            pss_at_end_mib=mib(lambda run: run.at_end.pss_kib),
            peak_rss_mib=mib(lambda run: run.peak_rss_kib),
        ),
    )


def _tokens(run: Measurement) -> list[float]:
    return [seconds for sequence in run.decode_s for seconds in sequence]


def _cold_start(
    measure: Callable[[Job], Measurement], job: Job, files: Sequence[Path], say: Callable[[str], None], request: Request
) -> ColdStart | None:
    """Load, init and first prompt with the files on disk alone, as far as the system drops them when asked."""
    if not request.cold:
        return None
    say("cold start")
    for path in [*files, *([job.packed_weights] if job.packed_weights else [])]:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages not yet written are not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found = measure(replace(job, sequences=0, warm_up=0))
    return ColdStart(found.load_s, found.init_s, found.first_token_s)


# --- what else was asked for ---------------------------------------------------------------------------------------------


def _operators(measure: Callable[[Job], Measurement], job: Job, say: Callable[[str], None]) -> list[OperatorTime]:
    from mobile_export.measure.operators import operator_times

    say("tracing operators")
    with tempfile.TemporaryDirectory() as room:
        trace = Path(room) / "trace.etdp"
        measure(replace(job, etdump=trace))
        return operator_times(trace)


def _curve(measure: Callable[[Job], Measurement], job: Job, max_context: int, say: Callable[[str], None]) -> list[CurvePoint]:
    """Decode rates over the context, from one token to all there is room for."""
    say(f"decoding {max_context} tokens, one by one")
    run = measure(replace(job, prompt_tokens=1, new_tokens=max_context - 1))
    (steps,) = run.decode_s
    points = []
    for first in range(0, len(steps), CURVE_STEP):
        some = steps[first : first + CURVE_STEP]
        points.append(CurvePoint(1 + first + len(some) // 2, 1 / statistics.median(some)))
    return points
