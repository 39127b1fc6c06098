"""Writes an ONNX artifact's folder: the model, its weights, the tokenizer, genai_config.json; gives the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mobile_export.checkpoint.tokenizer import with_tokenizer_json
from mobile_export.emit.describe import describe
from mobile_export.emit.onnx.blocks import predicted_bytes
from mobile_export.emit.onnx.calibrate import calibrate_kv
from mobile_export.emit.onnx.decoder_graph import OnnxOptions
from mobile_export.emit.onnx.genai import FILE as GENAI_FILE
from mobile_export.emit.onnx.genai import genai_config
from mobile_export.emit.onnx.program import FILE, WEIGHTS_FILE, write_program
from mobile_export.families.spec import DecoderSpec
from mobile_export.manifest import KvCacheSize, Manifest, OnnxGraph
from mobile_export.quantize.sizes import kv_slots, state_bytes
from mobile_export.quantize.weights import ModelWeights

VALUE_BYTES = {"float32": 4, "float16": 2, "int8": 1}
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxruntime")
# Found by running artifacts of ours in each version (benchmarks/onnx_versions.py): up to 1.26 the attention operator
# refuses an int8 cache, and up to 1.27 a block's weights are packed once for every execution.
MINIMUM, MINIMUM_INT8_CACHE, ONE_COPY = "1.24", "1.27", "1.28"


def write_artifact(
    folder: Path,
    weights: ModelWeights,
    options: OnnxOptions,
    requested_schedule: str | None,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write everything but manifest.json and README.md, which `write_manifest` lays beside it.

    Raises:
        InputError: a weight that cannot be read or is not finite, or one no kernel of onnxruntime takes.
        OSError: the folder cannot be written.
    """
    checkpoint, plan, spec = weights.checkpoint, weights.plan, weights.recognised.spec
    kv_scales = calibrate_kv(folder, weights, options, say) if weights.recipe.kv.dtype == "int8" else None
    program = write_program(folder, weights, options, kv_scales, say)
    tokenizer_files = with_tokenizer_json(checkpoint.tokenizer).files if checkpoint.tokenizer else {}
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    slots = kv_slots(weights.recognised, plan)
    runs_in_genai = isinstance(spec, DecoderSpec) and slots == len(plan.schedule)
    if isinstance(spec, DecoderSpec) and runs_in_genai:
        ends = checkpoint.bos_id, checkpoint.eos_ids
        config = genai_config(spec, slots, options.max_context, FILE, *ends, in_place=not options.portable)
        (folder / GENAI_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    kv_dtype = "int8" if kv_scales else options.activations
    row = spec.num_key_value_heads * spec.head_dim if isinstance(spec, DecoderSpec) else 0
    per_token = 2 * slots * row * VALUE_BYTES[kv_dtype]
    float_bytes = VALUE_BYTES[options.activations]
    state = state_bytes(weights.recognised, plan) // 4 * float_bytes  # counted in float32 there
    minimum = MINIMUM_INT8_CACHE if kv_scales else MINIMUM
    repeated = len(plan.schedule) > len(plan.blocks) and not options.portable
    graph = OnnxGraph(
        activations=options.activations,
        all_logits=options.all_logits,
        portable=options.portable,
        operators=program.operators,
        minimum_onnxruntime=minimum,
        one_copy_onnxruntime=ONE_COPY if repeated else minimum,
        runs_in_genai=runs_in_genai,
    )
    return describe(
        folder,
        (FILE, WEIGHTS_FILE),
        weights,
        graph,
        max_context=options.max_context,
        kv_cache=KvCacheSize(kv_dtype, slots, [options.max_context] * slots, per_token, per_token * options.max_context, state),
        parts=program.parts,
        predicted=predicted_bytes(weights, float_bytes),
        tokenizer_files=tuple(tokenizer_files),
        packages=PACKAGES,
        requested_schedule=requested_schedule,
    )


def needed_bytes(weights: ModelWeights, options: OnnxOptions) -> int:
    """What the folder will hold at least."""
    return sum(predicted_bytes(weights, VALUE_BYTES[options.activations]).values())
