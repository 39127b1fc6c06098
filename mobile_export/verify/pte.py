"""Holds a .pte against its checkpoint, in the ExecuTorch runtime."""

from __future__ import annotations

from pathlib import Path

import torch

from mobile_export.manifest import PteGraph
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.oracle import float32_oracle
from mobile_export.verify.parity import (
    NoiseFloor,
    exact_checks,
    noise_checks,
    random_text,
    short_sequence_checks,
    within_noise,
)
from mobile_export.verify.pte_runtime import PteRuntime
from mobile_export.verify.reference import reference_model
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
    tokens = random_text(weights.recognised.spec.vocab_size, context, graph.max_prompt)
    if weights.recipe.activations == "float32":
        oracle, logits = float32_oracle(weights, context)
        return Verification(oracle, len(tokens), (metadata, *exact_checks(runtime, logits, tokens, graph.max_prompt)))
    decoder = reference_model(weights, context)

    def checks(floor: NoiseFloor) -> list[Check]:
        short = short_sequence_checks(runtime, decoder, floor, graph.max_prompt)
        return [*short, *noise_checks(runtime, floor, tokens, graph.max_prompt)]

    return Verification(SAME_NUMBERS, len(tokens), (metadata, *within_noise(checks, decoder, tokens)))


def metadata_check(found: dict[str, int | bool | list[int]], expected: dict[str, object]) -> Check:
    """Whether a program's constant methods give what the manifest says."""
    wrong = [name for name, value in expected.items() if found.get(name) != value]
    return Check("metadata methods that differ", float(len(wrong)), 0.0, ", ".join(wrong) or "read back from the file")
