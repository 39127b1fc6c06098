"""Writes a Core ML artifact's folder: the package, the tokenizer as Swift wants it, config.json; gives the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from mobile_export import __version__
from mobile_export.checkpoint.tokenizer import with_tokenizer_json
from mobile_export.emit.coreml.layouts import CoreMlOptions
from mobile_export.emit.coreml.package import CONTENTS, CoreMlProgram, write_package
from mobile_export.emit.describe import describe, export_id
from mobile_export.errors import InputError, UsageError
from mobile_export.families.spec import DecoderSpec
from mobile_export.manifest import CoreMlGraph, KvCacheSize, Manifest
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.sizes import kv_slots, state_bytes
from mobile_export.quantize.weights import ModelWeights

TARGET = "iOS 18"
FLOAT16 = 2  # bytes
SMALLEST_RANGE = 3  # LanguageModelWithStatefulKVCache refuses a package whose lengths differ by no more than 1
PACKAGES = ("torch", "coremltools")
EXPORT_ID = "mobile-export.export-id"
HUB_NAME = "co.huggingface.exporters.name"  # where swift-transformers looks for a tokenizer it was not given


def check_expressible(weights: ModelWeights, options: CoreMlOptions) -> None:
    """Refuse what a package of ours cannot hold, before any work.

    Raises:
        InputError: RWKV's recurrence.
        UsageError: an int8 cache, palettes of nothing, a context swift-transformers takes for a fixed shape.
    """
    if not isinstance(weights.recognised.spec, DecoderSpec):
        what = f"{weights.recognised.spec.family} keeps a running state, which the Core ML emitter does not write yet"
        raise InputError(weights.checkpoint.source, what, "use `onnx`")
    if weights.recipe.kv.dtype == "int8":
        what = "asks for an int8 cache, and Core ML's states are float16"
        raise UsageError(f"recipe {weights.recipe.name}", what, "choose a recipe without one")
    if options.palettes and not any(matrix.precision.bits == 4 for matrix in weights.matrices.values()):
        raise UsageError("--palettes", f"recipe {weights.recipe.name} has no 4-bit weights", "choose one that has, such as w4")
    if options.layout == "stock" and options.max_context < SMALLEST_RANGE:
        raise UsageError("--max-context", "swift-transformers wants a range of lengths", f"use at least {SMALLEST_RANGE}")


def write_artifact(
    folder: Path,
    weights: ModelWeights,
    options: CoreMlOptions,
    requested_schedule: str | None,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write everything but manifest.json and README.md, which `write_manifest` lays beside it.

    Raises:
        InputError: a weight that cannot be read, is not finite, or is beyond float16.
        OSError: the folder cannot be written.
    """
    program = write_package(folder, weights, options, about(weights, options), say)
    words = write_files(folder, tokenizer_files(weights))
    config = json.dumps(weights.checkpoint.config, indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    return describe(
        folder,
        CONTENTS,
        weights,
        package_facts(program, weights, options),
        max_context=options.max_context,
        kv_cache=kv_cache(weights, options.max_context),
        parts=program.parts,
        predicted=predicted_bytes(weights),
        tokenizer_files=words,
        packages=PACKAGES,
        requested_schedule=requested_schedule,
        warnings=program.warnings,
    )


def about(weights: ModelWeights, options: CoreMlOptions) -> dict[str, str]:
    """What a package says of itself."""
    checkpoint, recipe = weights.checkpoint, weights.recipe
    return {
        "short_description": f"{checkpoint.source}, recipe {recipe.name}: {recipe.description}",
        "license": checkpoint.licence or "not stated by the checkpoint",
        HUB_NAME: checkpoint.source,
        "mobile-export.version": __version__,
        EXPORT_ID: export_id(weights, options),
        "mobile-export.max-context": str(options.max_context),
    }


def package_facts(program: CoreMlProgram, weights: ModelWeights, options: CoreMlOptions) -> CoreMlGraph:
    """What the manifest says of a package."""
    return CoreMlGraph(
        layout=options.layout,
        max_prompt=None if options.layout == "stock" else options.max_prompt,
        palettes=options.palettes,
        deployment_target=TARGET,
        operators=program.operators,
        export_id=export_id(weights, options),
        advice=[],
    )


def kv_cache(weights: ModelWeights, context: int) -> KvCacheSize:
    """The states of a package, float16."""
    spec, plan = weights.recognised.decoder, weights.plan
    slots = kv_slots(weights.recognised, plan)
    per_token = 2 * slots * spec.num_key_value_heads * spec.head_dim * FLOAT16
    columns = state_bytes(weights.recognised, plan) // 4 * FLOAT16  # counted in float32 there
    return KvCacheSize("float16", slots, [context] * slots, per_token, per_token * context, columns)


def tokenizer_files(weights: ModelWeights) -> Mapping[str, bytes]:
    """The tokenizer's files, a tokenizer.json among them; none where the checkpoint has no tokenizer."""
    tokenizer = weights.checkpoint.tokenizer
    return with_tokenizer_json(tokenizer).files if tokenizer else {}


def write_files(folder: Path, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Write files; give their names."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tuple(files)


def predicted_bytes(weights: ModelWeights) -> dict[str, int]:
    """Part -> bytes of its weights in weight.bin, scales and everything else in float16."""
    parts = dict.fromkeys(weights.predicted_bytes(), 0)
    for name in weights.stored():
        matrix = weights.matrices.get(name)
        parts[weights.part_of(name)] += _stored_bytes(matrix) if matrix else FLOAT16 * math.prod(weights.shape(name))
    return parts


def _stored_bytes(matrix: MatrixPlan) -> int:
    if matrix.precision.bits == 32:
        return FLOAT16 * matrix.parameters
    rows, columns = matrix.shape
    return matrix.code_bytes + rows * columns // (matrix.precision.group_size or columns) * FLOAT16
