"""`mobile-export pte`: a checkpoint to a folder that ExecuTorch's stock runner loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_export.cli.export import DEFAULT_PROMPT, KvOption, MaxContextOption, VerifyOption, print_manifest, settle, write
from mobile_export.cli.options import CheckpointArgument, JsonOption, RecipeOption, ScheduleOption
from mobile_export.cli.say import say, without_noise
from mobile_export.errors import UsageError


def pte(
    checkpoint: CheckpointArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: NAME-RECIPE-pte.")] = None,
    recipe: RecipeOption = "w4",
    schedule: ScheduleOption = None,
    max_context: MaxContextOption = None,
    max_prompt: Annotated[int, typer.Option("--max-prompt", min=1, help="Most prompt tokens in one call.")] = DEFAULT_PROMPT,
    attention: Annotated[
        str, typer.Option("--attention", help="custom: the runtime's own operators. core: plain ones, slower.")
    ] = "custom",
    kv: KvOption = None,
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
    job = settle(checkpoint, recipe, schedule, kv, out, max_context, "pte")
    with without_noise():
        say("loading torch and executorch")
        from mobile_export.emit.executorch.artifact import write_artifact
        from mobile_export.emit.executorch.program import PteOptions, build_program

        options = PteOptions(job.context, min(max_prompt, job.context), attention)
        held = job.weights.checkpoint
        program = build_program(job.weights, options, held.bos_id, held.eos_ids, say)
        manifest = write(
            job,
            len(program.file),
            verify,
            lambda folder: write_artifact(folder, program, job.weights, options, job.schedule),
        )
    print_manifest(manifest, job.out, as_json)
    return 0
