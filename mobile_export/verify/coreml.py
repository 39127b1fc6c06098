"""Holds a model.mlpackage against its checkpoint, by our interpreter of the package."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from mobile_export.emit.coreml.artifact import EXPORT_ID
from mobile_export.manifest import CoreMlGraph
from mobile_export.model.decoder import Decoder
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.coreml_delegate import delegated_package
from mobile_export.verify.coreml_numbers import matrices_that_differ
from mobile_export.verify.coreml_runtime import CoreMlRuntime
from mobile_export.verify.float16_numbers import float16_decoder
from mobile_export.verify.mlprogram.static_checks import static_checks
from mobile_export.verify.parity import (
    EXACT,
    EXACT_REASON,
    TEXT,
    NoiseFloor,
    error,
    exact_checks,
    float16_noise,
    prompts,
    random_text,
    steps,
    within_noise,
)
from mobile_export.verify.pte import metadata_check
from mobile_export.verify.pte_runtime import PteRuntime
from mobile_export.verify.reference import reference_logits
from mobile_export.verify.verdict import Check, Verification

ORACLE = "the same numbers, rounded to float16, in plain PyTorch"
LONG = 32  # tokens of the longest prompt tried
FEW = 8  # tokens fed one by one where every result is rounded


def verify_coreml(
    path: Path, weights: ModelWeights, graph: CoreMlGraph, context: int, methods: dict[str, object] | None = None
) -> Verification:
    """Run a package in float32, where it must agree to rounding, and with every result rounded to float16.

    Args:
        weights: of the checkpoint it was exported from, under the same recipe and schedule.
        methods: of a .pte around the package: constant method -> value.
    Raises:
        InputError: damaged, or an operator our interpreter does not know.
    """
    torch.set_num_threads(1)
    exact = CoreMlRuntime(path, graph)
    tokens = random_text(weights.recognised.spec.vocab_size, context, min(LONG, context))
    decoder = float16_decoder(weights, context)
    differing = matrices_that_differ(exact.program, decoder, tied=weights.plan.tied)
    errors = _static_errors(path)
    checks = [
        _counted("matrices stored with other codes or scales", differing, "read back"),
        _counted("static errors", errors, "types inferred anew, operators of iOS 18"),
        _id_check(exact, graph),
        *exact_checks(exact, lambda text: reference_logits(decoder, text), tokens, LONG),
    ]
    if methods is not None:
        checks.append(metadata_check(PteRuntime(path).metadata(), methods))
    if graph.layout == "stock":
        exact.mask_surplus = 1
        checks.append(_as_swift_transformers(exact, decoder, tokens[: context - 1]))
    del exact
    coarse = CoreMlRuntime(path, graph, "float16")
    noise = float16_noise(len(weights.plan.schedule))
    checks += within_noise(lambda floor: _rounded_checks(coarse, floor, tokens), decoder, tokens[:TEXT], noise)
    return Verification(ORACLE, len(tokens), tuple(checks))


def _counted(name: str, found: list[str], otherwise: str) -> Check:
    return Check(name, float(len(found)), 0.0, "; ".join(found[:3]) or otherwise)


def _static_errors(path: Path) -> list[str]:
    """What a look at the package finds that a device would refuse."""
    with delegated_package(path) if path.suffix == ".pte" else contextlib.nullcontext(path) as package:
        return [finding.sentence() for finding in static_checks(package) if finding.level == "error"]


def _id_check(runtime: CoreMlRuntime, graph: CoreMlGraph) -> Check:
    """Whether the package is the one the manifest speaks of."""
    found = runtime.program.metadata.get(EXPORT_ID)
    return Check("export-id that differs", float(found != graph.export_id), 0.0, f"{EXPORT_ID}, read back")


def _as_swift_transformers(runtime: CoreMlRuntime, decoder: Decoder, tokens: list[int]) -> Check:
    """A prompt in one call and the rest token by token, with the mask LanguageModel sends: zeros, one row, one too long."""
    want = reference_logits(decoder, tokens)
    first = max(1, len(tokens) // 2)
    errors = [error(runtime.step(tokens[:first], 0), want[first - 1])]
    errors += [error(runtime.step([tokens[at]], at), want[at]) for at in range(first, len(tokens))]
    return Check("as swift-transformers calls it", max(errors), EXACT, EXACT_REASON)


def _rounded_checks(runtime: CoreMlRuntime, floor: NoiseFloor, tokens: list[int]) -> list[Check]:
    """Every result rounded to float16: an overflow is NaN here, and no check passes with one."""
    text = tokens[:TEXT]
    return [
        Check("float16 throughout, token by token", max(steps(runtime, text[:FEW], floor.want)), floor.largest, floor.reason),
        Check(
            "float16 throughout, prompt", max(prompts(runtime, text, floor.want, (3, TEXT), TEXT)), floor.largest, floor.reason
        ),
    ]
