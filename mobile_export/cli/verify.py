"""`mobile-export verify`: run an artifact and hold it against the checkpoint it was made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.options import CalibrationOption, JsonOption
from mobile_export.cli.say import done, say, without_noise
from mobile_export.errors import EXIT_NO, EXIT_YES, InputError
from mobile_export.manifest import SAMPLED, CalibrationFacts, Manifest, check_files, folder_of, read_manifest

if TYPE_CHECKING:
    from mobile_export.families.spec import DecoderSpec, RwkvSpec
    from mobile_export.quantize.weights import ModelWeights
    from mobile_export.verify.parity import Runtime
    from mobile_export.verify.verdict import Verification


def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder, or the file in it.")],
    against: Annotated[str, typer.Option("--against", metavar="CHECKPOINT", help="The checkpoint it was made from.")],
    calibration: CalibrationOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run ARTIFACT in its runtime and compare with CHECKPOINT; exit code 1 if they disagree.

    Example: mobile-export verify out --against smollm2-135m
    """
    manifest = read_manifest(artifact)
    folder = folder_of(artifact)
    check_files(folder, manifest)
    say("reading the checkpoint")
    with without_noise():
        found = verified(folder, manifest, weights_for(folder, manifest, against, calibration))
    done()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found.recorded())))
    else:
        from mobile_export.cli.report import report

        typer.echo(report(dataclasses.replace(manifest, verification=found.recorded()), folder))
    return EXIT_YES if found.passed else EXIT_NO


def weights_for(folder: Path, manifest: Manifest, against: str, calibration: Path | None = None) -> ModelWeights:
    """A checkpoint's weights under the recipe and the schedule an artifact was made with.

    Args:
        calibration: the text, where the artifact was calibrated with a file.

    Raises:
        InputError: the checkpoint cannot be read, or has another shape than the artifact's.
    """
    from mobile_export.checkpoint import open_checkpoint
    from mobile_export.families import recognise, settle
    from mobile_export.quantize.recipe import recipe_from
    from mobile_export.quantize.weights import ModelWeights
    from mobile_export.sharing import plan_sharing

    checkpoint = settle(open_checkpoint(against))
    recognised = recognise(checkpoint)
    _check_source(folder, manifest, recognised.spec, against)
    plan = plan_sharing(checkpoint, recognised, manifest.requested_schedule)
    return ModelWeights(checkpoint, recognised, plan, recipe_from(manifest.recipe, "manifest.json"), calibration, say)


def runtime_of(path: Path, manifest: Manifest) -> Runtime:
    """An artifact's file, loaded in the runtime of its format."""
    if manifest.onnx:
        from mobile_export.verify.onnx_runtime import OnnxRuntime

        return OnnxRuntime(path, manifest.onnx.minimum_onnxruntime)
    if manifest.package:
        from mobile_export.verify.coreml_runtime import CoreMlRuntime

        return CoreMlRuntime(path, manifest.package)
    from mobile_export.verify.pte_runtime import PteRuntime

    return PteRuntime(path)


def verified(folder: Path, manifest: Manifest, weights: ModelWeights) -> Verification:
    """Verify the artifact in a folder against weights made under its recipe and schedule.

    Raises:
        InputError: calibration gives other numbers here than it gave where the artifact was made.
    """
    if manifest.calibration:
        _check_calibration(manifest.calibration, weights)
    path = folder / manifest.file
    if manifest.onnx:
        from mobile_export.verify.onnx import verify_onnx

        return verify_onnx(path, weights, manifest.onnx, manifest.max_context)
    if manifest.package:
        from mobile_export.verify.coreml import verify_coreml

        methods = manifest.pte.metadata if manifest.pte else None
        return verify_coreml(path, weights, manifest.package, manifest.max_context, methods)
    from mobile_export.verify.pte import verify_pte

    assert manifest.pte, "a manifest has its format's facts"
    return verify_pte(path, weights, manifest.pte, manifest.max_context)


def _check_calibration(made_with: CalibrationFacts, weights: ModelWeights) -> None:
    """Refuse numbers that are not the artifact's: they would be found to disagree for no fault of its own."""
    text = weights.calibration_text.name if weights.calibration_text else SAMPLED
    if text != made_with.text:
        then = "leave --calibration out" if made_with.text == SAMPLED else f"give that file: --calibration {made_with.text}"
        raise InputError("manifest.json", f"the text it was calibrated with is {made_with.text}, not {text}", then)
    if weights.calibrated is None or weights.calibrated.sha256 != made_with.sha256:
        what = "calibration gives other numbers here: from another text, or on another kind of processor"
        then = "verify it where it was made, or bring calibrated-*.safetensors from that machine's cache folder"
        raise InputError("manifest.json", what, then)


def _check_source(folder: Path, manifest: Manifest, spec: DecoderSpec | RwkvSpec, against: str) -> None:
    """Refuse a checkpoint of another shape; its values are what verification compares."""
    given = json.loads(json.dumps(dataclasses.asdict(spec)))
    differs = next((name for name in given if given[name] != manifest.spec.get(name)), None)
    if differs:
        was, has = manifest.spec.get(differs), given[differs]
        plain = all(isinstance(value, int | float | str) for value in (was, has))
        what = f"{differs} {was}, {against} has {has}" if plain else f"another {differs} than {against} has"
        raise InputError(str(folder), f"was made from a model with {what}", f"verify it against {manifest.source}, its source")
