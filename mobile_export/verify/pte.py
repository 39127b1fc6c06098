"""Holds a .pte against its checkpoint, in the ExecuTorch runtime."""

from __future__ import annotations

from pathlib import Path

import torch

from mobile_export.emit.executorch.scales import as_stored
from mobile_export.manifest import PteGraph
from mobile_export.quantize.sizes import kv_rows
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.oracle import float32_oracle
from mobile_export.verify.parity import (
    EXACT,
    EXACT_REASON,
    NoiseFloor,
    error,
    exact_checks,
    in_chunks,
    noise_checks,
    random_text,
    short_sequence_checks,
    within_noise,
)
from mobile_export.verify.pte_runtime import PteRuntime
from mobile_export.verify.quantized_linear import DynamicInt8Linear
from mobile_export.verify.reference import reference_last, reference_model
from mobile_export.verify.verdict import SAME_NUMBERS, Check, Verification


def verify_pte(path: Path, weights: ModelWeights, graph: PteGraph, context: int) -> Verification:
    """Load a .pte, read its metadata back, and compare what it computes.

    Args:
        weights: of the checkpoint it was exported from, under the same recipe and schedule.
    Raises:
        InputError: the runtime cannot load or run the file.
    """
    torch.set_num_threads(1)  # the runtime has threads of its own; two pools on the same cores are many times slower
    runtime = PteRuntime(path)
    metadata = metadata_check(runtime.metadata(), graph.metadata)
    vocabulary = weights.recognised.spec.vocab_size
    tokens = random_text(vocabulary, context, graph.max_prompt)
    rings = [rows for rows in kv_rows(weights.recognised, weights.plan, context, graph.max_prompt).values() if rows < context]
    long = random_text(vocabulary, context, max(rings)) if rings else []
    if weights.recipe.activations == "float32":
        oracle, logits = float32_oracle(weights, context)
        found = [metadata, *exact_checks(runtime, logits, tokens, graph.max_prompt)]
        if long:
            found.append(_window_check(runtime, long, graph.max_prompt, logits(long)[-1], EXACT, EXACT_REASON))
        return Verification(oracle, len(tokens), tuple(found))
    decoder = reference_model(weights, context)
    for module in decoder.modules() if weights.trained else ():  # our own scales are bfloat16, or it is found out here
        if isinstance(module, DynamicInt8Linear):
            module.weight = as_stored(module.weight)
    last = reference_last(decoder, long) if long else None

    def checks(floor: NoiseFloor) -> list[Check]:
        short = short_sequence_checks(runtime, decoder, floor, graph.max_prompt)
        found = [*short, *noise_checks(runtime, floor, tokens, graph.max_prompt)]
        if last is not None:
            found.append(_window_check(runtime, long, graph.max_prompt, last, floor.largest, floor.reason))
        return found

    return Verification(SAME_NUMBERS, len(tokens), (metadata, *within_noise(checks, decoder, tokens)))


def _window_check(
    runtime: PteRuntime, tokens: list[int], max_prompt: int, want: torch.Tensor, limit: float, reason: str
) -> Check:
    """A text longer than every ring of KV rows, so that each has been written around."""
    name = f"{len(tokens)} tokens in chunks of {max_prompt}, past every window"
    return Check(name, error(in_chunks(runtime, tokens, max_prompt), want), limit, reason)


def metadata_check(found: dict[str, int | bool | list[int]], expected: dict[str, object]) -> Check:
    """Whether a program's constant methods give what the manifest says."""
    wrong = [name for name, value in expected.items() if found.get(name) != value]
    return Check("metadata methods that differ", float(len(wrong)), 0.0, ", ".join(wrong) or "read back from the file")
