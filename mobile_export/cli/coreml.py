"""`mobile-export coreml`: a checkpoint to a stateful package that swift-transformers loads as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.export import MaxContextOption, VerifyOption, print_manifest, settle, write
from mobile_export.cli.options import CalibrationOption, CheckpointArgument, JsonOption, RecipeOption, ScheduleOption
from mobile_export.cli.say import say, without_noise
from mobile_export.errors import UsageError

if TYPE_CHECKING:
    from mobile_export.manifest import Manifest


def coreml(
    checkpoint: CheckpointArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: NAME-RECIPE-coreml.")] = None,
    recipe: RecipeOption = "w4",
    calibration: CalibrationOption = None,
    schedule: ScheduleOption = None,
    max_context: MaxContextOption = None,
    layout: Annotated[
        str,
        typer.Option("--layout", help="stock: what swift-transformers calls. functions: prefill and decode of fixed shape."),
    ] = "stock",
    max_prompt: Annotated[
        int | None, typer.Option("--max-prompt", min=2, help="Tokens in a call of prefill. Default: 64.", show_default=False)
    ] = None,
    palettes: Annotated[
        bool, typer.Option("--palettes", help="4-bit weights as palettes of sixteen values instead of integers.")
    ] = False,
    verify: VerifyOption = True,
    as_json: JsonOption = False,
) -> int:
    """Quantize CHECKPOINT and convert it to a Core ML package for iOS 18, every shared weight stored once.

    The package is run by an interpreter of ours, on any machine; a Mac or an iPhone it has not seen.

    Example: mobile-export coreml smollm2-135m --recipe w4 --out out-coreml
    """
    if layout not in ("stock", "functions"):
        raise UsageError(f"--layout {layout}", "no such layout", "write stock or functions")
    if layout == "stock" and max_prompt is not None:
        what = "a stock package takes prompts of any length"
        raise UsageError("--max-prompt", what, "add --layout functions, or leave it out")
    job = settle(checkpoint, recipe, schedule, None, out, max_context, "coreml", calibration)
    with without_noise():
        say("loading torch and coremltools")
        from mobile_export.emit.coreml.artifact import predicted_bytes, write_artifact
        from mobile_export.emit.coreml.expressible import check_expressible
        from mobile_export.emit.coreml.layouts import CoreMlOptions

        options = CoreMlOptions(job.context, layout, min(max_prompt or 64, job.context), palettes)  # type: ignore[arg-type]
        check_expressible(job.weights, options)
        manifest = write(
            job,
            2 * sum(predicted_bytes(job.weights).values()),  # beside its place, and in it
            verify,
            lambda folder: with_advice(folder, write_artifact(folder, job.weights, options, job.schedule, say)),
        )
    print_manifest(manifest, job.out, as_json)
    return 0


def with_advice(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest, with what may keep the package off the Neural Engine."""
    from mobile_export.verify.coreml_runtime import read_program
    from mobile_export.verify.mlprogram.neural_engine import lint

    assert manifest.package, "it was just written"
    advice = [finding.advice() for finding in lint(read_program(folder / manifest.file))]
    package = dataclasses.replace(manifest.package, advice=advice)
    if manifest.pte:
        return dataclasses.replace(manifest, pte=dataclasses.replace(manifest.pte, core_ml=package))
    return dataclasses.replace(manifest, coreml=package)
