"""What a Core ML package of ours cannot hold is refused here, before any work and without coremltools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobile_export.errors import InputError, UsageError
from mobile_export.families.spec import DecoderSpec
from mobile_export.quantize.weights import ModelWeights

if TYPE_CHECKING:
    from mobile_export.emit.coreml.layouts import CoreMlOptions

SMALLEST_RANGE = 3  # LanguageModelWithStatefulKVCache refuses a package whose lengths differ by no more than 1


def check_expressible(weights: ModelWeights, options: CoreMlOptions | None = None) -> None:
    """Refuse a network or a recipe that does not go into a package; with options, those that do not go with it.

    Raises:
        InputError: RWKV's recurrence.
        UsageError: an int8 cache, palettes of nothing, a context swift-transformers takes for a fixed shape.
    """
    if not isinstance(weights.recognised.spec, DecoderSpec):
        what = f"{weights.recognised.spec.family} keeps a running state, which the Core ML emitter does not write yet"
        raise InputError(weights.checkpoint.source, what, "use `pte` or `onnx`")
    if weights.recipe.kv.dtype == "int8":
        what = "asks for an int8 cache, and Core ML's states are float16"
        raise UsageError(f"recipe {weights.recipe.name}", what, "choose a recipe without one")
    if options is None:
        return
    if options.palettes and not any(matrix.precision.bits == 4 for matrix in weights.matrices.values()):
        raise UsageError("--palettes", f"recipe {weights.recipe.name} has no 4-bit weights", "choose one that has, such as w4")
    if options.layout == "stock" and options.max_context < SMALLEST_RANGE:
        raise UsageError("--max-context", "swift-transformers wants a range of lengths", f"use at least {SMALLEST_RANGE}")
