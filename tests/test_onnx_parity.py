"""Every family's ONNX graph: in float32 against transformers, quantized against the same codes in PyTorch."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from exported import CONTEXT, checkpoint, manifest, onnx_artifact, onnx_file, weights_of
from test_pte import SHARED, duplicated_llama, logits_of
from test_pte import TOKENS as FEW
from tiny_families import FAMILIES, TOKENS, VOCAB, reference_logits, written

from mobile_export.cli.steps import prepare
from mobile_export.emit.onnx.calibrate import calibrate_kv
from mobile_export.emit.onnx.decoder_graph import OnnxOptions
from mobile_export.emit.onnx.operators import KvScales
from mobile_export.model.attention import PlainAttention
from mobile_export.verify.onnx_runtime import OnnxRuntime
from mobile_export.verify.parity import NOISE
from mobile_export.verify.reference import Reference, float_activations, onnxruntime_arithmetic, reference_model
from mobile_export.verify.reference import reference_logits as logits_in_pytorch

LIMIT = 1e-5  # of the largest logit: float32 summed in another order, measured 2e-6 at most
LOG_LIMIT = 1e-4  # of a log-probability: logits up to 7, each off by LIMIT at most
CHUNKS = {"prefill": [40], "steps": [1] * 40, "mixed": [17, 8, 1, 1, 1, 5, 7]}
ANY_VERSION = "1.0"  # the tests run in the one that is installed
TEXTS, LENGTH, DRAWS = 8, 6, 8  # short texts: few int8 activations lie on an edge; draws of noise
assert all(sum(chunks) == len(TOKENS) for chunks in CHUNKS.values())


@functools.cache
def onnx_of(name: str, recipe: str) -> Path:
    return onnx_file(weights_of(written(name), recipe), all_logits=True)


@functools.cache
def runtime_of(name: str, recipe: str, plain: bool = False) -> OnnxRuntime:
    return OnnxRuntime(onnx_of(name, recipe), ANY_VERSION, float_activations=plain)


def in_chunks(runtime: OnnxRuntime, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits of every position, fed in chunks; an earlier sequence has left something behind."""
    runtime.logits(tokens[::-1], 0)
    found, start = [], 0
    for length in chunks:
        found.append(runtime.logits(tokens[start : start + length], start))
        start += length
    return torch.cat(found)


def errors(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Of every position, over the largest logit of all."""
    assert got.shape == want.shape
    return (got - want).abs().amax(-1) / want.abs().max()


# --- float32 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_transformers_computes(name, chunks):
    want = reference_logits(name)
    got = in_chunks(runtime_of(name, "fp32"), TOKENS, chunks)
    assert got.shape == (len(TOKENS), VOCAB)
    assert errors(got, want).max() <= LIMIT
    assert (got.log_softmax(-1) - want.log_softmax(-1)).abs().max() <= LOG_LIMIT


@pytest.mark.parametrize(("kind", "options", "arguments", "schedule"), SHARED)
def test_a_shared_model_computes_what_the_duplicated_llama_computes(kind, options, arguments, schedule):
    """A Llama with each execution's block written out, from the raw tensors."""
    folder = onnx_artifact(checkpoint(kind, **options), "--recipe", "fp32", "--all-logits", *arguments)
    assert tuple(manifest(folder)["sharing"]["schedule"]) == schedule
    want = logits_of(duplicated_llama(schedule), FEW)
    runtime = OnnxRuntime(folder / "model.onnx", ANY_VERSION)
    for chunks in ([12], [1] * 12, [5, 1, 1, 3, 2]):
        assert errors(in_chunks(runtime, FEW, chunks), want).max() <= LIMIT


def test_another_order_of_the_blocks_would_show():
    """What the test above would see: the four orders of two blocks are four networks."""
    found = [logits_of(duplicated_llama(order), FEW) for order in ((0, 1), (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0))]
    apart = [errors(a, b).min() for at, a in enumerate(found) for b in found[:at]]
    assert min(apart) > 100 * LIMIT


# --- quantized ---------------------------------------------------------------------------------------------------------


@functools.cache
def reference_of(name: str, recipe: str) -> Reference:
    def no_cache(_):
        raise AssertionError("no recipe here keeps an int8 cache")

    return reference_model(weights_of(written(name), recipe), CONTEXT, onnxruntime_arithmetic(no_cache))


def short_texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return torch.randint(3, VOCAB, (TEXTS, LENGTH), generator=generator).tolist()


def moved_by_noise(decoder: Reference, text: list[int], draw: int) -> torch.Tensor:
    """Errors of the reference against itself, its table off by as much as float32 rounds. One draw may move no code."""
    want, plain = logits_in_pytorch(decoder, text), decoder.embedding
    generator = torch.Generator().manual_seed(draw)

    class Noisy(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = plain(tokens)
            return x * (1 + NOISE * torch.randn(x.shape, generator=generator))

    decoder.embedding = Noisy()
    noisy = logits_in_pytorch(decoder, text)
    decoder.embedding = plain
    return errors(noisy, want)


@pytest.mark.parametrize("recipe", ["w8-fast", "w4-fast"])
@pytest.mark.parametrize("name", FAMILIES)
def test_quantized_weights_under_float_activations_are_the_same_codes_in_pytorch(name, recipe):
    """Nothing is rounded to int8 at run time, so nothing excuses more than float32's rounding."""
    decoder, text = reference_of(name, recipe), TOKENS[:14]
    with float_activations(decoder):
        want = logits_in_pytorch(decoder, text)
    assert errors(in_chunks(runtime_of(name, recipe, plain=True), text, [9, 1, 1, 3]), want).max() <= LIMIT


@pytest.mark.parametrize("recipe", ["w8-fast", "w4-fast"])
@pytest.mark.parametrize("name", FAMILIES)
def test_int8_activations_are_rounded_as_in_pytorch(name, recipe):
    """In the median to float32 rounding; or where one int8 step moved it, no further than such steps move the reference."""
    decoder, runtime = reference_of(name, recipe), runtime_of(name, recipe)
    texts = short_texts()
    found = torch.cat([errors(in_chunks(runtime, text, [4, 1, 1]), logits_in_pytorch(decoder, text)) for text in texts])
    if found.median() > LIMIT:
        moved = torch.cat([moved_by_noise(decoder, text, draw) for text in texts for draw in range(DRAWS)])
        assert found.max() <= 3 * moved.max()
        assert found.min() <= LIMIT, "on some position no code was near its edge"


def test_most_families_are_shallow_enough_to_agree_in_the_median():
    """That the excuse above is the exception. Without the rounding of activations almost none would."""
    close = apart = 0
    for name in FAMILIES:
        decoder, runtime, text = reference_of(name, "w8-fast"), runtime_of(name, "w8-fast"), short_texts()[0]
        got = in_chunks(runtime, text, [LENGTH])
        close += int(errors(got, logits_in_pytorch(decoder, text)).median() <= LIMIT)
        with float_activations(decoder):
            apart += int(errors(got, logits_in_pytorch(decoder, text)).median() > 100 * LIMIT)
    assert close >= 0.8 * len(FAMILIES)
    assert apart == len(FAMILIES), "int8 activations do show"


# --- an int8 cache -----------------------------------------------------------------------------------------------------


class RoundedCache(PlainAttention):
    """Keys and values to the nearest code of their channel's scale and back. scales: of each slot, key's and value's."""

    def __init__(self, rules, scales: list[KvScales], head_dim: int) -> None:
        super().__init__(rules)
        self.scales, self.head_dim = scales, head_dim

    def forward(self, slot, query, key, value, start):
        rounded = []
        for x, scale in ((key, self.scales[slot].key), (value, self.scales[slot].value)):
            step = torch.from_numpy(scale).view(1, 1, -1, self.head_dim)
            rounded.append((x / step).round().clamp(-128, 127) * step)
        return super().forward(slot, query, *rounded, start)


@pytest.mark.parametrize("name", [name for name, tiny in FAMILIES.items() if tiny.model_type not in ("lfm2", "rwkv")])
def test_an_int8_cache_rounds_keys_and_values_as_in_pytorch(tmp_path, name):
    """Everything else in float32, so that one step of one code here and there is all that may differ."""
    weights = prepare(str(written(name)), "fp32", None, "int8")
    scales = calibrate_kv(tmp_path, weights, OnnxOptions(CONTEXT), lambda _: None)
    runtime = OnnxRuntime(onnx_file(weights, scales, all_logits=True), ANY_VERSION)

    def cache(rules):
        return RoundedCache(rules, list(scales), weights.recognised.decoder.head_dim)

    want = logits_in_pytorch(reference_model(weights, CONTEXT, onnxruntime_arithmetic(cache)), TOKENS)
    for chunks in CHUNKS.values():
        assert errors(in_chunks(runtime, TOKENS, chunks), want).median() <= LIMIT
    assert errors(want, reference_logits(name)).median() > 20 * LIMIT, "the rounding does show"
