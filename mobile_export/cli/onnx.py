"""`mobile-export onnx`: a checkpoint to a folder that onnxruntime and onnxruntime-genai run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_export.cli.export import KvOption, MaxContextOption, VerifyOption, print_manifest, settle, write
from mobile_export.cli.options import CalibrationOption, CheckpointArgument, JsonOption, RecipeOption, ScheduleOption
from mobile_export.cli.say import say, without_noise
from mobile_export.errors import UsageError


def onnx(
    checkpoint: CheckpointArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: NAME-RECIPE-onnx.")] = None,
    recipe: RecipeOption = "w4",
    calibration: CalibrationOption = None,
    schedule: ScheduleOption = None,
    max_context: MaxContextOption = None,
    kv: KvOption = None,
    activations: Annotated[
        str, typer.Option("--activations", help="float32, or float16 for processors that compute in it.")
    ] = "float32",
    portable: Annotated[
        bool,
        typer.Option("--portable", help="Operators of the ONNX standard alone: slower, and shared blocks are packed apart."),
    ] = False,
    all_logits: Annotated[
        bool, typer.Option("--all-logits", help="Logits of every position, to evaluate texts; else of the last one.")
    ] = False,
    verify: VerifyOption = True,
    as_json: JsonOption = False,
) -> int:
    """Quantize CHECKPOINT and write an ONNX model, every shared weight stored and packed once.

    Example: mobile-export onnx smollm2-135m --recipe w4 --out out-onnx
    """
    if activations not in ("float32", "float16"):
        raise UsageError(f"--activations {activations}", "no such type", "write float32 or float16")
    if portable and (activations == "float16" or kv == "int8"):
        other = "--activations float16" if activations == "float16" else "--kv int8"
        raise UsageError("--portable", f"{other} needs operators of onnxruntime's own", "leave one of the two out")
    job = settle(checkpoint, recipe, schedule, kv, out, max_context, "onnx", calibration)
    if activations == "float16":
        plain = next((m.name for m in job.weights.matrices.values() if m.precision.bits == 32), None)
        if plain:
            what = f"recipe {job.weights.recipe.name} keeps {plain} in float32"
            raise UsageError("--activations float16", what, "choose a quantized recipe, or leave it out")
    if portable and job.weights.recipe.kv.dtype == "int8":
        what = f"the KV cache of recipe {job.weights.recipe.name} is int8, which needs operators of onnxruntime's own"
        raise UsageError("--portable", what, "add --kv float32")
    with without_noise():
        say("loading torch and onnx")
        from mobile_export.emit.onnx.artifact import needed_bytes, write_artifact
        from mobile_export.emit.onnx.decoder_graph import OnnxOptions

        options = OnnxOptions(job.context, all_logits, activations, portable)  # type: ignore[arg-type]
        manifest = write(
            job,
            needed_bytes(job.weights, options),
            verify,
            lambda folder: write_artifact(folder, job.weights, options, job.schedule, say),
        )
    print_manifest(manifest, job.out, as_json)
    return 0
