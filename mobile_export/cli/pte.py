"""`mobile-export pte`: a checkpoint to a folder that ExecuTorch's stock runner loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from mobile_export.cli.options import CheckpointArgument, JsonOption, RecipeOption, ScheduleOption
from mobile_export.cli.say import done, say, warn, without_noise
from mobile_export.errors import AnswerIsNo, InputError, UsageError

DEFAULT_CONTEXT = 1024


def pte(
    checkpoint: CheckpointArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: NAME-RECIPE-pte.")] = None,
    recipe: RecipeOption = "w4",
    schedule: ScheduleOption = None,
    max_context: Annotated[
        int | None,
        typer.Option("--max-context", min=2, help=f"KV rows. Default: {DEFAULT_CONTEXT}, or the model's own if less."),
    ] = None,
    max_prompt: Annotated[int, typer.Option("--max-prompt", min=1, help="Most prompt tokens in one call.")] = 128,
    attention: Annotated[
        str, typer.Option("--attention", help="custom: the runtime's own operators. core: plain ones, slower.")
    ] = "custom",
    kv: Annotated[
        str | None, typer.Option("--kv", help="KV cache: float32 or int8. Default: the recipe's.", show_default=False)
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Run the result against the checkpoint.")] = True,
    as_json: JsonOption = False,
) -> int:
    """Quantize CHECKPOINT and lower it to an ExecuTorch .pte, every shared weight stored and packed once.

    Example: mobile-export pte smollm2-135m --recipe w4 --out out
    """
    if attention not in ("custom", "core"):
        raise UsageError(f"--attention {attention}", "no such attention", "write custom or core")
    if kv not in (None, "float32", "int8"):
        raise UsageError(f"--kv {kv}", "no such cache", "write float32 or int8")
    if kv == "int8" and attention == "core":
        raise UsageError("--kv int8", "core attention keeps a float32 cache", "use --attention custom")
    say("reading the checkpoint")
    from mobile_export.cli.steps import prepare
    from mobile_export.emit.artifact import check_out, new_artifact

    name = Path(checkpoint.rstrip("/")).name.removesuffix(".gguf")
    out = out or Path(f"{name}-{Path(recipe).stem}-pte")
    check_out(out)
    weights = prepare(checkpoint, recipe, schedule, kv)
    for line in (*weights.checkpoint.warnings, *weights.plan.warnings):
        warn(line)
    limit = weights.recognised.spec.max_position_embeddings
    if max_context is not None and max_context > limit:
        what = f"{max_context} positions, the model was trained for {limit}"
        raise InputError("--max-context", what, f"use at most {limit}")
    context = max_context or min(DEFAULT_CONTEXT, limit)
    if not weights.checkpoint.eos_ids:
        warn("the checkpoint names no end-of-sequence token: a runner will not know when to stop")

    with without_noise():
        say("loading torch and executorch")
        from mobile_export.emit.executorch.artifact import write_artifact, write_manifest
        from mobile_export.emit.executorch.program import PteOptions, build_program

        options = PteOptions(context, min(max_prompt, context), attention)
        program = build_program(weights, options, weights.checkpoint.bos_id, weights.checkpoint.eos_ids, say)
        with new_artifact(out, len(program.file)) as folder:
            manifest = write_artifact(folder, program, weights, options, schedule)
            if verify:
                say("verifying: running the program against the checkpoint")
                from mobile_export.cli.verify import verified

                found = verified(folder, manifest, weights)
                if not found.passed:
                    failed = "; ".join(found.failures())
                    raise AnswerIsNo(
                        str(out),
                        f"the program disagrees with {found.oracle}: {failed}",
                        "nothing was written; please report it",
                    )
                manifest = dataclasses.replace(manifest, verification=found.recorded())
            write_manifest(folder, manifest)
    done()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(manifest)))
    else:
        from mobile_export.cli.report import report

        typer.echo(report(manifest, out))
    return 0
