"""A tied table that was folded for its head, in every format: rows are unfolded when they are looked up."""

from __future__ import annotations

import itertools

import pytest
import torch
from exported import coreml_file, coreml_runtime, onnx_file, program_file, weights_of
from tiny_families import TOKENS, written

from mobile_export.quantize.fold import Factor, fold, of_head
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.verify.onnx_runtime import OnnxRuntime
from mobile_export.verify.pte_runtime import PteRuntime
from mobile_export.verify.reference import EXECUTORCH, onnxruntime_arithmetic, reference_logits, reference_model

# The rows are the stream; they are normed, scaled, projected as is the head's input; another decoder with a head of its own.
NAMES = ["qwen3", "bloom", "gemma3", "opt-350m", "rwkv4"]
SOME = TOKENS[:8]


def folded(name, recipe):
    """The head's channels, from a tenth to ten times their size."""
    weights = weights_of(written(name), recipe)
    columns = weights.shape(EMBEDDING)[1]
    sizes = torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=torch.Generator().manual_seed(6))]
    if not weights.plan.tied:
        return weights.folded_by({EMBEDDING: Factor(columns=sizes)})
    factors = fold(weights, of_head(weights), {EMBEDDING: sizes[None]}, lambda _, columns: float(columns is None))
    assert len(factors) > 1
    return weights.folded_by(factors)


def in_one_call(runtime):
    return runtime.logits(SOME, 0)


def one_by_one(runtime):
    return torch.stack([runtime.step([token], at) for at, token in enumerate(SOME)])


def error(got, want):
    return float((got - want).abs().max() / want.abs().max())


def of_pte(weights, folder):
    return one_by_one(PteRuntime(program_file(weights, folder / "model.pte")))


def of_onnx(weights, _, **options):
    return in_one_call(OnnxRuntime(onnx_file(weights, all_logits=True, **options), "1.0"))


def of_portable_onnx(weights, folder):
    return of_onnx(weights, folder, portable=True)


def of_core_ml(weights, _):
    return in_one_call(coreml_runtime(coreml_file(weights)))


LIMITS = {of_pte: 1e-4, of_onnx: 1e-4, of_portable_onnx: 1e-4, of_core_ml: 0.02}
REFUSED = [(of_portable_onnx, "rwkv4"), (of_core_ml, "rwkv4")]


@pytest.mark.parametrize(("of", "name"), [pair for pair in itertools.product(LIMITS, NAMES) if pair not in REFUSED])
def test_a_folded_model_says_what_it_said_before(of, name, tmp_path):
    weights = folded(name, "fp32")
    assert weights.unfold().log().std() > 0.2
    want = reference_logits(reference_model(weights_of(written(name), "fp32"), 64), SOME)
    assert error(of(weights, tmp_path), want) <= LIMITS[of]


@pytest.mark.parametrize("recipe", ["w8-fast", "w4-all-fast"])
@pytest.mark.parametrize(("of", "arithmetic"), [(of_pte, EXECUTORCH), (of_onnx, onnxruntime_arithmetic(list))])
def test_codes_are_those_of_the_folded_table(of, arithmetic, recipe, tmp_path):
    weights = folded("qwen3", recipe)
    want = reference_logits(reference_model(weights, 64, arithmetic), SOME)
    assert (of(weights, tmp_path) - want).abs().median() <= 0.01 * want.abs().max()
