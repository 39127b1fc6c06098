"""`mobile-export pte`: a checkpoint to a folder that ExecuTorch's stock runner loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.coreml import with_advice
from mobile_export.cli.export import (
    DEFAULT_PROMPT,
    Job,
    KvOption,
    MaxContextOption,
    VerifyOption,
    print_manifest,
    settle,
    write,
)
from mobile_export.cli.options import CalibrationOption, CheckpointArgument, JsonOption, RecipeOption, ScheduleOption
from mobile_export.cli.say import say, without_noise
from mobile_export.errors import UsageError

if TYPE_CHECKING:
    from mobile_export.manifest import Manifest


def pte(
    checkpoint: CheckpointArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: NAME-RECIPE-pte.")] = None,
    recipe: RecipeOption = "w4",
    calibration: CalibrationOption = None,
    schedule: ScheduleOption = None,
    max_context: MaxContextOption = None,
    max_prompt: Annotated[int, typer.Option("--max-prompt", min=1, help="Most prompt tokens in one call.")] = DEFAULT_PROMPT,
    attention: Annotated[
        str, typer.Option("--attention", help="custom: the runtime's own operators. core: plain ones, slower.")
    ] = "custom",
    kv: KvOption = None,
    backend: Annotated[
        str, typer.Option("--backend", help="xnnpack: any processor. coreml: Apple's, the whole model one delegate.")
    ] = "xnnpack",
    verify: VerifyOption = True,
    as_json: JsonOption = False,
) -> int:
    """Quantize CHECKPOINT and lower it to an ExecuTorch .pte, every shared weight stored and packed once.

    Example: mobile-export pte smollm2-135m --recipe w4 --out out
    """
    if attention not in ("custom", "core"):
        raise UsageError(f"--attention {attention}", "no such attention", "write custom or core")
    if kv == "int8" and attention == "core":
        raise UsageError("--kv int8", "core attention keeps a float32 cache", "use --attention custom")
    if backend not in ("xnnpack", "coreml"):
        raise UsageError(f"--backend {backend}", "no such backend", "write xnnpack or coreml")
    if backend == "coreml" and attention != "custom":
        raise UsageError("--attention", "the Core ML backend has its own", "leave it out")
    job = settle(checkpoint, recipe, schedule, kv, out, max_context, "pte", calibration)
    max_prompt = min(max_prompt, job.context)
    with without_noise():
        if backend == "coreml":
            manifest = _for_core_ml(job, max_prompt, verify)
        else:
            manifest = _for_xnnpack(job, max_prompt, attention, verify)
    print_manifest(manifest, job.out, as_json)
    return 0


def _for_xnnpack(job: Job, max_prompt: int, attention: str, verify: bool) -> Manifest:
    say("loading torch and executorch")
    from mobile_export.emit.executorch.artifact import write_artifact
    from mobile_export.emit.executorch.program import PteOptions, build_program

    options, held = PteOptions(job.context, max_prompt, attention), job.weights.checkpoint
    program = build_program(job.weights, options, held.bos_id, held.eos_ids, say)

    def emit(folder: Path) -> Manifest:
        return write_artifact(folder, program, job.weights, options, job.schedule)

    return write(job, len(program.file), verify, emit)


def _for_core_ml(job: Job, max_prompt: int, verify: bool) -> Manifest:
    say("loading torch, coremltools and executorch")
    from mobile_export.emit.coreml.artifact import predicted_bytes
    from mobile_export.emit.coreml.delegate import write_artifact
    from mobile_export.emit.coreml.expressible import check_expressible
    from mobile_export.emit.coreml.layouts import CoreMlOptions

    options = CoreMlOptions(job.context, "delegate", max_prompt)
    check_expressible(job.weights, options)
    needed = 3 * sum(predicted_bytes(job.weights).values())  # as a package, beside its place, and in the .pte

    def emit(folder: Path) -> Manifest:
        return with_advice(folder, write_artifact(folder, job.weights, options, job.schedule, say))

    return write(job, needed, verify, emit)
