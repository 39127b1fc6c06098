"""What every exporting verb does before and after its emitter."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.say import done, say, warn
from mobile_export.errors import AnswerIsNo, InputError, UsageError

if TYPE_CHECKING:
    from mobile_export.manifest import Manifest
    from mobile_export.quantize.weights import ModelWeights

DEFAULT_CONTEXT, DEFAULT_PROMPT = 1024, 128

MaxContextOption = Annotated[
    int | None,
    typer.Option(
        "--max-context", min=2, help=f"Longest text, in tokens. Default: {DEFAULT_CONTEXT}, or the model's own if less."
    ),
]
KvOption = Annotated[
    str | None, typer.Option("--kv", help="KV cache: float32 or int8. Default: the recipe's.", show_default=False)
]
VerifyOption = Annotated[bool, typer.Option("--verify/--no-verify", help="Run the result against the checkpoint.")]


@dataclass(frozen=True)
class Job:
    """What an emitter is asked for. context: most positions of a text."""

    weights: ModelWeights
    out: Path
    context: int
    schedule: str | None


def settle(
    checkpoint: str,
    recipe: str,
    schedule: str | None,
    kv: str | None,
    out: Path | None,
    max_context: int | None,
    form: str,
    calibration: Path | None = None,
) -> Job:
    """Read and plan, refuse what cannot work before any of it is done, and warn of what is odd.

    Args:
        form: of the artifact, for the folder's default name.
    Raises:
        InputError, UsageError, MissingTool: as the steps say.
    """
    if kv not in (None, "float32", "int8"):
        raise UsageError(f"--kv {kv}", "no such cache", "write float32 or int8")
    say("reading the checkpoint")
    from mobile_export.cli.steps import prepare
    from mobile_export.emit.artifact import check_out

    out = out or Path(f"{name_of(checkpoint)}-{Path(recipe).stem}-{form}")
    check_out(out)
    weights = prepare(checkpoint, recipe, schedule, kv, calibration)
    for line in (*weights.checkpoint.warnings, *weights.plan.warnings):
        warn(line)
    limit = weights.recognised.spec.max_position_embeddings
    if max_context is not None and max_context > limit:
        what = f"{max_context} positions, the model was trained for {limit}"
        raise InputError("--max-context", what, f"use at most {limit}")
    if not weights.checkpoint.eos_ids:
        warn("the checkpoint names no end-of-sequence token: a runner will not know when to stop")
    return Job(weights, out, max_context or min(DEFAULT_CONTEXT, limit), schedule)


def name_of(checkpoint: str) -> str:
    """What a checkpoint is called in the names of what is made from it.

    >>> name_of("models/tiny/"), name_of("tiny.Q4_1.gguf")
    ('tiny', 'tiny.Q4_1')
    """
    return re.sub(r"\.(gguf|pth?)$", "", Path(checkpoint.rstrip("/")).name)


def write(job: Job, needed_bytes: int, verify: bool, emit: Callable[[Path], Manifest]) -> Manifest:
    """Let an emitter write into a fresh folder, verify what it wrote, and put it in its place.

    Args:
        needed_bytes: what will be written at least.
        emit: writes everything but the manifest, and gives it.
    Raises:
        AnswerIsNo: verification failed; nothing is left behind.
        InputError, MissingTool: as the emitter says; likewise.
    """
    from mobile_export.cli.verify import verified
    from mobile_export.emit.artifact import new_artifact
    from mobile_export.emit.describe import write_manifest

    with new_artifact(job.out, needed_bytes) as folder:
        manifest = emit(folder)
        known = (*job.weights.checkpoint.warnings, *job.weights.plan.warnings)
        for line in manifest.warnings:
            if line not in known:  # those were told before any work
                warn(line)
        if verify:
            say("verifying: running the result against the checkpoint")
            found = verified(folder, manifest, job.weights)
            if not found.passed:
                failed = "; ".join(found.failures())
                what = f"the artifact disagrees with {found.oracle}: {failed}"
                raise AnswerIsNo(str(job.out), what, "nothing was written; please report it")
            manifest = dataclasses.replace(manifest, verification=found.recorded())
        write_manifest(folder, manifest)
    return manifest


def print_manifest(manifest: Manifest, out: Path, as_json: bool) -> None:
    """The page about a finished artifact, or its manifest as one JSON object."""
    done()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(manifest)))
    else:
        from mobile_export.cli.report import report

        typer.echo(report(manifest, out))
