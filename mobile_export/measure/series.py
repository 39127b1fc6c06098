"""Runs of one artifact in one place, here or on a phone -> Profile: a process a run, numbers of threads taken in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mobile_export import __version__
from mobile_export.manifest import Manifest
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
from mobile_export.measure.request import Request
from mobile_export.units import counted

LOGITS_OF = tuple(range(3, 11))
ALL_LOGITS = 1 << 20  # more than any vocabulary
CURVE_STEP = 32  # tokens a point of the curve is the median of
WEIGHTS = {"plain": "packed at load", "cache": "weight cache", "file": "packed file"}


@dataclass(frozen=True)
class Place:
    """Where a runner runs. Paths are as the runner there opens them.

    measure: runs it once. affinity: cores to stay on, none given: all; threads: as many as are worth trying.
    files: the artifact's, the one to load first. packed_weights, trace: where it may write. fetch: brings a file here.
    """

    machine: Machine
    measure: Callable[[Job], Measurement]
    affinity: tuple[int, ...]
    threads: int
    files: tuple[Path, ...]
    packed_weights: Path
    trace: Path
    fetch: Callable[[Path], Path]


def profile_at(place: Place, artifact: Path, manifest: Manifest, request: Request, say: Callable[[str], None]) -> Profile:
    """Measure an artifact in a place.

    Raises:
        MobileExportError: as `place.measure` says.
    """
    job = Job(
        model=place.files[0],
        prompt_tokens=request.prompt_tokens,
        new_tokens=request.new_tokens,
        affinity=place.affinity,
        weight_cache=request.weights == "cache",
        packed_weights=place.packed_weights if request.weights == "file" else None,
        logits_of=LOGITS_OF[: manifest.max_context],
    )
    threads = request.threads or _powers_of_two(place.threads)
    say("warming up")
    place.measure(replace(job, threads=threads[0]))  # also makes the packed weights' file
    cold = _cold_start(place, replace(job, threads=threads[0]), say) if request.cold else None
    measured = _in_turn(place.measure, job, threads, request.runs, say)
    by_threads = [summary(runs) for runs in measured.values()]
    best = max(by_threads, key=lambda each: each.decode_tokens_per_s.median).threads
    at_best = replace(job, threads=best)
    return Profile(
        schema_version=SCHEMA_VERSION,
        tool=f"mobile-export {__version__}",
        artifact=str(artifact),
        format=manifest.format,
        recipe=str(manifest.recipe["name"]),
        files=manifest.files,
        machine=place.machine,
        runtime=measured[best][0].runtime,
        weights=WEIGHTS[request.weights],
        prompt_tokens=request.prompt_tokens,
        new_tokens=request.new_tokens,
        runs=request.runs,
        by_threads=by_threads,
        best_threads=best,
        cold=cold,
        operators=_operators(place, at_best, say) if request.operators else None,
        curve=_curve(place.measure, at_best, manifest.max_context, say) if request.curve else None,
        logits=measured[best][0].logits,
    )


def logits_job(model: Path, manifest: Manifest) -> Job:
    """All logits of fixed tokens, and little else: what every place must give alike."""
    tokens = LOGITS_OF[: manifest.max_context]
    return Job(model, prompt_tokens=1, sequences=0, warm_up=0, logits_of=tokens, logits_values=ALL_LOGITS)


def _powers_of_two(cores: int) -> tuple[int, ...]:
    """Numbers of threads to try.

    >>> _powers_of_two(1), _powers_of_two(2), _powers_of_two(6)
    ((1,), (1, 2), (1, 2, 4, 6))
    """
    powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    return (*powers, cores)


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


def summary(runs: Sequence[Measurement]) -> AtThreads:
    """What runs at one number of threads gave together."""

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


def _cold_start(place: Place, job: Job, say: Callable[[str], None]) -> ColdStart:
    """Load, init and first prompt with the files on disk alone, as far as the system drops them when asked."""
    say("cold start")
    drop = (*place.files, *([job.packed_weights] if job.packed_weights else []))
    found = place.measure(replace(job, drop=drop, sequences=0, warm_up=0))
    return ColdStart(found.load_s, found.init_s, found.first_token_s)


def _operators(place: Place, job: Job, say: Callable[[str], None]) -> list[OperatorTime]:
    from mobile_export.measure.operators import operator_times

    say("tracing operators")
    place.measure(replace(job, etdump=place.trace))
    return operator_times(place.fetch(place.trace))


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
