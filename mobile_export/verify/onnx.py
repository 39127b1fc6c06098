"""Holds a model.onnx against its checkpoint, in onnxruntime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import torch

from mobile_export.manifest import OnnxGraph
from mobile_export.model.attention import PlainAttention
from mobile_export.model.decoder import Decoder
from mobile_export.quantize.sizes import kv_slots
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.onnx_runtime import OnnxRuntime
from mobile_export.verify.oracle import float32_oracle
from mobile_export.verify.parity import (
    EXACT,
    EXACT_REASON,
    NOISE,
    TEXT,
    NoiseFloor,
    exact_checks,
    float16_noise,
    noise_checks,
    noise_floor,
    prompts,
    random_text,
    short_sequence_checks,
    steps,
    within_noise,
)
from mobile_export.verify.reference import Reference, Rules, float_activations, onnxruntime_arithmetic, reference_model
from mobile_export.verify.verdict import SAME_NUMBERS, Check, Verification

CHUNK = 128  # tokens a longer prompt is fed in
FEW = 8
CUT_OFF = 0.01  # of the keys and values of random tokens; 4e-6 of SmolLM2-135M's are


def verify_onnx(path: Path, weights: ModelWeights, graph: OnnxGraph, context: int) -> Verification:
    """Load a model.onnx, check its kernels are the int8 ones, and compare what it computes.

    A quantized model is run twice: as it is, and with the same codes and scales under float activations, where nothing is
    rounded and the two must agree to float32 rounding.

    Args:
        weights: of the checkpoint it was exported from, under the same recipe and schedule.
    Raises:
        MissingTool: onnxruntime is too old.
        InputError: the runtime cannot load or run the file.
    """
    torch.set_num_threads(1)  # the runtime has threads of its own; two pools on the same cores are many times slower
    model = onnx.load(path, load_external_data=False)
    max_prompt = min(CHUNK, context)
    tokens = random_text(weights.recognised.spec.vocab_size, context, max_prompt)
    accuracy = () if graph.portable else (_accuracy_check(model),)
    slots = _slots_check(model, weights)
    if not slots.passed:  # another network: nothing below could be compared
        return Verification("the sharing plan", 0, (*accuracy, slots))
    if weights.recipe.activations == "float32" and weights.recipe.kv.dtype == "float32":
        oracle, logits = float32_oracle(weights, context)
        runtime = OnnxRuntime(path, graph.minimum_onnxruntime)
        return Verification(oracle, len(tokens), (*accuracy, *exact_checks(runtime, logits, tokens, max_prompt)))

    def int8_cache(rules: Rules) -> PlainAttention:
        return StaticInt8Cache(rules, _kv_scales(model, path.parent), weights.recognised.decoder.head_dim)

    decoder = reference_model(weights, context, onnxruntime_arithmetic(int8_cache))
    noise = NOISE if graph.activations == "float32" else float16_noise(len(weights.plan.schedule))
    with float_activations(decoder):
        plain = OnnxRuntime(path, graph.minimum_onnxruntime, float_activations=True)
        unrounded = _unrounded_checks(plain, decoder, tokens[:TEXT], weights, graph, noise)
        del plain
    runtime = OnnxRuntime(path, graph.minimum_onnxruntime)
    rounded = within_noise(lambda floor: noise_checks(runtime, floor, tokens, max_prompt), decoder, tokens, noise)
    cut_off = _cut_off_checks(decoder)
    return Verification(SAME_NUMBERS, len(tokens), (*accuracy, *unrounded, *rounded, *cut_off))


def _unrounded_checks(
    runtime: OnnxRuntime, decoder: Reference, text: list[int], weights: ModelWeights, graph: OnnxGraph, noise: float
) -> list[Check]:
    """Few tokens: without int8 activations 8-bit weights have no kernel. An int8 or float16 cache rounds all the same."""
    exact = graph.activations == "float32"

    def checks(floor: NoiseFloor) -> list[Check]:
        rounded = not exact or weights.recipe.kv.dtype == "int8"
        limit, reason = (floor.largest, floor.reason) if rounded else (EXACT, EXACT_REASON)
        return [
            Check("float activations, token by token", max(steps(runtime, text[:FEW], floor.want)), limit, reason),
            Check("float activations, prompt", max(prompts(runtime, text, floor.want, (3, TEXT), TEXT)), limit, reason),
        ]

    found = within_noise(checks, decoder, text, noise)
    if not exact or weights.recipe.kv.dtype == "float32":
        return found
    short = short_sequence_checks(runtime, decoder, noise_floor(decoder, text, noise), TEXT)  # few values, few edges
    return [*(dataclasses.replace(check, name=f"float activations, {check.name}") for check in short), *found]


def _cut_off_checks(decoder: Reference) -> list[Check]:
    """Whether the scales of an int8 cache fit: the reference has them from the file, so it cannot tell by its logits."""
    cache = decoder.attend if isinstance(decoder, Decoder) else None
    if not isinstance(cache, StaticInt8Cache):
        return []
    reason = "random tokens go further than the text the scales were calibrated on"
    return [Check("keys and values beyond the scales of the cache, share", cache.beyond / cache.seen, CUT_OFF, reason)]


class StaticInt8Cache(PlainAttention):
    """PlainAttention over keys and values that went through int8, with the file's own scales.

    scales: slot -> key's and value's, float32 (kv_heads * head_dim,).
    """

    def __init__(self, rules: Rules, scales: dict[int, tuple[torch.Tensor, torch.Tensor]], head_dim: int) -> None:
        super().__init__(rules)
        self.beyond = self.seen = 0  # values cut off, and all
        self.scales = {slot: tuple(s.view(1, 1, -1, head_dim) for s in pair) for slot, pair in scales.items()}

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        key, value = (self._rounded(x, scale) for x, scale in zip((key, value), self.scales[slot], strict=True))
        return super().forward(slot, query, key, value, start)

    def _rounded(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        codes = torch.round(x / scale)
        kept = codes.clamp(-128, 127)
        self.beyond += int((codes != kept).sum())
        self.seen += codes.numel()
        return kept * scale


def _accuracy_check(model: onnx.ModelProto) -> Check:
    """Without accuracy_level 4, 8-bit weights have no kernel and run many times slower; nothing else would show it."""
    wrong = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMulNBits" and not any(a.name == "accuracy_level" and a.i == 4 for a in node.attribute)
    ]
    return Check("products without int8 activations", float(len(wrong)), 0.0, ", ".join(wrong[:3]) or "read from the graph")


def _slots_check(model: onnx.ModelProto, weights: ModelWeights) -> Check:
    """A graph of another schedule has more caches, or fewer."""
    found = sum(value.name.startswith("past_key_values.") for value in model.graph.input) // 2
    wanted = kv_slots(weights.recognised, weights.plan)
    return Check("KV slots too many or too few", abs(found - wanted), 0.0, f"{found} in the graph, {wanted} by the plan")


def _kv_scales(model: onnx.ModelProto, folder: Path) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Slot -> scales of an int8 cache, as the file holds them."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    return {
        slot: (_tensor(held[node.input[12]], folder), _tensor(held[node.input[13]], folder)) for slot, node in enumerate(nodes)
    }


def _tensor(held: onnx.TensorProto, folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(onnx.numpy_helper.to_array(held, str(folder))))
