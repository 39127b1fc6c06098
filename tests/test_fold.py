"""Folding: what a model computes stays what it was, and a rescaled checkpoint becomes the one it came from."""

import math

import pytest
import torch
from exported import checkpoint, weights_of
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_llama
from tiny_families import FAMILIES, TOKENS, written

from benchmarks.rescaled import rescale
from mobile_export.quantize import fold as module
from mobile_export.quantize.activations import quantization_steps, quantize_dequantize_rows
from mobile_export.quantize.fold import POWERS, channels_of, fold, of_head
from mobile_export.verify.reference import reference_logits, reference_model


def drawn_inputs(weights, spread=1.5):
    """Inputs whose sizes lie over several orders of magnitude, for every matrix of every block."""
    generator = torch.Generator().manual_seed(2)

    def of(count):
        return torch.randn(50, count, generator=generator) * torch.exp(spread * torch.randn(count, generator=generator))

    return {name: of(matrix.shape[1]) for name, matrix in weights.matrices.items()}


def only_unfolded(_, columns):
    """A loss that makes everything be folded."""
    return float(columns is None)


def folded(weights, inputs):
    factors = {}
    for stored in range(len(weights.plan.blocks)):
        factors |= fold(weights, channels_of(weights, stored), inputs, only_unfolded)
    factors |= fold(weights, of_head(weights), inputs, only_unfolded)
    return factors, weights.folded_by(factors)


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_changes_no_logits_whatever_was_measured(name):
    weights = weights_of(written(name), "fp32")
    factors, after = folded(weights, drawn_inputs(weights))
    assert factors
    was, now = (reference_logits(reference_model(some, 64), TOKENS) for some in (weights, after))
    largest = float(was.abs().max())
    assert torch.allclose(was, now, rtol=0, atol=5e-5 * largest)
    moved = [name for name in factors if not weights.float32(name).equal(after.float32(name))]
    assert moved == list(factors)


@pytest.mark.parametrize(
    ("name", "giving"),
    [
        ("llama", ["ffn.up.weight", "attention.qkv.weight", "ffn.norm.weight", "attention.norm.weight"]),
        ("gpt2-lamini", ["attention.qkv.weight", "ffn.norm.weight", "attention.norm.weight"]),  # gelu: no scale goes through
        ("opt-125m", ["ffn.up.weight", "attention.qkv.weight", "ffn.norm.weight", "attention.norm.weight"]),  # relu
        ("opt-350m", ["ffn.up.weight", "attention.qkv.weight"]),  # norms after the sums
        ("galactica-bare", ["attention.qkv.weight"]),  # norms without weights
        ("phi2", ["attention.qkv.weight", "attention.norm.weight"]),  # one norm for both halves
        ("lfm2", ["ffn.up.weight", "conv.in.weight", "ffn.norm.weight", "conv.norm.weight"]),
        ("rwkv4", ["ffn.key.weight", "attention.value.weight", "ffn.norm.weight", "attention.norm.weight"]),
    ],
)
def test_what_can_be_folded_in_each_kind_of_block(name, giving):
    weights = weights_of(checkpoint(blocks=1) if name == "llama" else written(name), "fp32")
    assert [next(iter(channels.giving)).removeprefix("blocks.0.") for channels in channels_of(weights, 0)] == giving


def test_the_middle_power_is_the_best_there_is_for_a_group(monkeypatch):
    """Held against the error's bound, sum (w s)^2 times sum (x / s)^2, for other scales near it."""
    monkeypatch.setattr(module, "POWERS", (0.5,))
    weights = weights_of(checkpoint(blocks=1), "fp32")
    inputs = drawn_inputs(weights, 0.5)
    name = "blocks.0.ffn.down.weight"
    columns = fold(weights, channels_of(weights, 0), inputs, only_unfolded)[name].columns

    def bound(scale):
        return float(((weights.float32(name) * scale) ** 2).sum() * ((inputs[name] / scale) ** 2).sum())

    assert bound(columns) < 0.8 * bound(torch.ones_like(columns))
    for channel in range(0, len(columns), 16):
        for by in (0.9, 1.1):
            other = columns.clone()
            other[channel] *= by
            assert bound(other) > bound(columns)


@pytest.mark.parametrize("power", POWERS)
def test_a_rescaled_checkpoint_is_folded_into_the_one_it_came_from(tmp_path, monkeypatch, power):
    monkeypatch.setattr(module, "POWERS", (power,))
    plain = write_llama(tmp_path / "plain", blocks=2)
    rescaled = write_llama(tmp_path / "rescaled", blocks=2)
    tensors = load_file(rescaled / "model.safetensors")
    rescale(tensors, 4, 2)
    save_file(tensors, rescaled / "model.safetensors")
    results = []
    for folder in (plain, rescaled):
        weights = weights_of(folder, "fp32")
        seen = {}
        decoder = reference_model(weights, 64)
        for name, matrix in decoder.named_modules():
            if isinstance(matrix, torch.nn.Linear):
                at = weights.source_of(f"{name}.weight")
                matrix.register_forward_pre_hook(lambda _, given, at=at, seen=seen: seen.update({at: given[0][0]}))
        logits = reference_logits(decoder, TOKENS)
        results.append((weights, folded(weights, seen)[1], logits))
    (first, one, logits), (second, other, others) = results
    assert torch.allclose(logits, others, atol=1e-4)
    for name in one.sources:
        a, b = one.float32(name), other.float32(name)
        assert math.isclose(float(a.norm()), float(b.norm()), rel_tol=1e-3), name
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max())), name
    assert not torch.allclose(first.float32("blocks.0.ffn.up.weight"), second.float32("blocks.0.ffn.up.weight"), rtol=0.1)


def test_a_channel_that_is_never_used_gets_a_finite_scale():
    weights = weights_of(checkpoint(blocks=1), "fp32")
    drawn = drawn_inputs(weights)
    nothing = {name: torch.zeros_like(x) for name, x in drawn.items()}
    some = {name: x * (torch.arange(x.shape[1]) > 3) for name, x in drawn.items()}
    for inputs in (nothing, some):
        for factor in fold(weights, channels_of(weights, 0), inputs, only_unfolded).values():
            for part in (factor.rows, factor.columns):
                assert part is None or (part.isfinite().all() and (part > 0).all())
    assert module.LEAST > 0


def test_channels_are_folded_where_rounding_then_loses_less():
    """A matrix that lies on its grid already loses nothing until it is folded; one whose columns differ in size gains."""
    weights = weights_of(checkpoint(blocks=1), "w4-fast")
    inputs = {name: torch.ones(50, matrix.shape[1]) for name, matrix in weights.matrices.items()}
    own, down = weights.float32, "blocks.0.ffn.down.weight"
    sizes = torch.linspace(0, 5, weights.shape(down)[1]).exp()[torch.randperm(weights.shape(down)[1])]
    for of, pays in ((weights.quantized(down).dequantized(), False), (own(down) * sizes, True)):
        weights.float32 = lambda name, of=of: of if name == down else own(name)
        assert (down in fold(weights, channels_of(weights, 0), inputs | {down: inputs[down] / sizes})) == pays
    plain = weights_of(checkpoint(blocks=1), "fp32")
    assert not fold(plain, channels_of(plain, 0), inputs)


def test_inputs_that_one_scale_a_token_serves_badly_are_folded_even_where_weights_lose_a_little():
    """One input in a hundred is thirty times the others, and one scale has to serve them all."""
    weights = weights_of(checkpoint(blocks=1), "w8-fast")
    generator, down = torch.Generator().manual_seed(3), "blocks.0.ffn.down.weight"
    inputs = {name: torch.randn(200, m.shape[1], generator=generator) for name, m in weights.matrices.items()}
    inputs[down][:, ::100] *= 30
    columns = fold(weights, channels_of(weights, 0), inputs)[down].columns
    x, weight = inputs[down], weights.float32(down)
    before, after = (
        float((quantize_dequantize_rows(x / by) @ (weight * by).t() - x @ weight.t()).square().mean())
        for by in (torch.ones_like(columns), columns)
    )
    assert after < 0.3 * before


def test_a_step_is_what_rounding_moves_a_value_by_at_most():
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(4)) * torch.logspace(-3, 3, 100)[:, None]
    off = (quantize_dequantize_rows(x) - x).abs().amax(dim=1) / quantization_steps(x)
    assert (off < 1).all()  # half a step, and as much again where the zero point is rounded
    assert off.median() > 0.4
