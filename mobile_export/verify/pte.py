"""Holds a .pte against the same numbers in plain PyTorch, or in float32 against transformers.

A quantized model cannot be held to one tight limit over a text: float32 rounding moves now and then an int8 activation to
its neighbouring code, and 30 blocks make of one such step several percent of a logit (measured in
docs/decisions/0002, by benchmarks/noise_floor.py). So two things are asked. Among many short sequences some stay clear of
every such edge, and on one of them the artifact must agree to float32 rounding: a graph that is wrong anywhere agrees on
none. And over a text it may stray no further from the reference than the reference strays from itself under rounding
noise, which is measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mobile_export.model.decoder import Decoder
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.oracle import float32_oracle
from mobile_export.verify.pte_runtime import PteRuntime
from mobile_export.verify.reference import reference_decoder, reference_logits
from mobile_export.verify.verdict import Check, Verification

TRIES = 48  # short sequences tried until one agrees
TEXT = 24  # tokens fed one by one
NOISE = 1e-6  # relative, on the embedding: ten times float32's rounding, what other summation orders make of it
EXACT, FLOOR = 1e-4, 5e-3  # of the largest logit: float32 in another order; one int8 activation in a shallow model

Logits = Callable[[list[int]], torch.Tensor]


def verify_pte(path: Path, weights: ModelWeights, expected_metadata: dict[str, object], max_prompt: int) -> Verification:
    """Run a .pte in the ExecuTorch runtime and compare.

    Checks: metadata; short sequences to float32 rounding; a text token by token (cached against uncached); prompts in one
    call; a prompt longer than one chunk.

    Args:
        weights: of the checkpoint it was exported from, under the same recipe and schedule.
        expected_metadata: constant method name -> value.
        max_prompt: most tokens in one call.
    Raises:
        InputError: the runtime cannot load or run the file.
    """
    torch.set_num_threads(1)  # the runtime has threads of its own; two pools on the same cores are many times slower
    runtime = PteRuntime(path)
    context = int(expected_metadata["get_max_context_len"])  # type: ignore[call-overload]
    chunked = min(context, max_prompt + 5)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(weights.recognised.spec.vocab_size, (max(TEXT, chunked),), generator=generator).tolist()
    tokens = tokens[:context]
    metadata = _metadata_check(runtime.metadata(), expected_metadata)
    if weights.recipe.activations == "float32":
        oracle, logits = float32_oracle(weights, context)
        checks = _float_checks(runtime, logits, tokens, max_prompt)
    else:
        oracle = "the same codes and scales in plain PyTorch"
        checks = _quantized_checks(runtime, reference_decoder(weights, context), tokens, max_prompt)
    return Verification(oracle, len(tokens), (metadata, *checks))


def _metadata_check(found: dict[str, int | bool | list[int]], expected: dict[str, object]) -> Check:
    wrong = [name for name, value in expected.items() if found.get(name) != value]
    return Check("metadata methods that differ", float(len(wrong)), 0.0, ", ".join(wrong) or "read back from the file")


def _float_checks(runtime: PteRuntime, logits: Logits, tokens: list[int], max_prompt: int) -> list[Check]:
    want = logits(tokens)
    text = tokens[:TEXT]
    reason = "float32 summed in another order"
    steps = max(_error(runtime.step([token], at), want[at]) for at, token in enumerate(text))
    prompts = max(_error(runtime.step(tokens[:n], 0), want[n - 1]) for n in _prompt_lengths(max_prompt, len(text)))
    chunks = _error(_in_chunks(runtime, tokens, max_prompt), want[-1])
    return [
        Check("token by token", steps, EXACT, reason),
        Check("prompt in one call", prompts, EXACT, reason),
        Check(f"prompt of {len(tokens)} tokens in chunks of {max_prompt}", chunks, EXACT, reason),
    ]


def _quantized_checks(runtime: PteRuntime, decoder: Decoder, tokens: list[int], max_prompt: int) -> list[Check]:
    want = reference_logits(decoder, tokens)
    noisy = noisy_logits(decoder, tokens)
    floor = torch.tensor([_error(b, a) for a, b in zip(want, noisy, strict=True)])
    text = tokens[:TEXT]
    lengths = _prompt_lengths(max_prompt, len(text))
    steps = torch.tensor([_error(runtime.step([token], at), want[at]) for at, token in enumerate(text)])
    prompts = torch.tensor([_error(runtime.step(tokens[:n], 0), want[n - 1]) for n in lengths])
    chunks = _error(_in_chunks(runtime, tokens, max_prompt), want[-1])
    typical = max(FLOOR, 2 * float(floor[: len(text)].median()))
    largest = max(FLOOR, 3 * float(floor.max()))
    reason = f"noise of {NOISE:g} moves the reference itself by {floor.median():.2g} in the median, {floor.max():.2g} at most"
    return [
        _exact_check(runtime, decoder, "one token, the best agreement", 1, 1, largest),
        _exact_check(runtime, decoder, "two tokens one by one, the best agreement", 2, 1, largest),
        _exact_check(runtime, decoder, "two tokens in one call, the best agreement", 2, min(2, max_prompt), largest),
        Check("text token by token, median", float(steps.median()), typical, reason),
        Check("text token by token, most", float(steps.max()), largest, reason),
        Check("prompt in one call, most", float(prompts.max()), largest, reason),
        Check(f"prompt of {len(tokens)} tokens in chunks of {max_prompt}", chunks, largest, reason),
    ]


def _exact_check(runtime: PteRuntime, decoder: Decoder, name: str, length: int, chunk: int, loose: float) -> Check:
    """Some sequence on which artifact and reference agree to float32 rounding.

    Where the noisy reference does not agree with itself on any of them either, the model is too deep for the question,
    and the limit is the loose one.
    """
    generator = torch.Generator().manual_seed(length)
    best, calmest = torch.inf, torch.inf
    for _ in range(TRIES):
        tokens = torch.randint(decoder.spec.vocab_size, (length,), generator=generator).tolist()
        want = reference_logits(decoder, tokens)[-1]
        best = min(best, _error(_in_chunks(runtime, tokens, chunk), want))
        if best <= EXACT:
            return Check(name, best, EXACT, "float32 summed in another order")
        calmest = min(calmest, _error(noisy_logits(decoder, tokens)[-1], want))
    if calmest > EXACT:
        return Check(name, best, loose, f"no sequence stays clear of rounding edges: noise of {NOISE:g} moves each")
    return Check(name, best, EXACT, "float32 summed in another order; the reference agrees with itself under noise")


def _prompt_lengths(max_prompt: int, longest: int) -> list[int]:
    return [n for n in (1, 2, 3, 7, 12, 24) if n <= min(max_prompt, longest)]


def _in_chunks(runtime: PteRuntime, tokens: list[int], max_prompt: int) -> torch.Tensor:
    """Logits of the last token when the prompt is fed as a stock runner feeds it."""
    for start in range(0, len(tokens), max_prompt):
        logits = runtime.step(tokens[start : start + max_prompt], start)
    return logits


class _Noisy(nn.Module):
    """An embedding with seeded relative noise."""

    def __init__(self, embedding: nn.Module, noise: float) -> None:
        super().__init__()
        self.embedding, self.noise = embedding, noise

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        return x * (1 + self.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))


def noisy_logits(decoder: Decoder, tokens: list[int], noise: float = NOISE) -> torch.Tensor:
    """reference_logits of the decoder under seeded relative noise on its embedding, float32 [T, vocab]."""
    plain = decoder.embedding
    decoder.embedding = _Noisy(plain, noise)
    logits = reference_logits(decoder, tokens)
    decoder.embedding = plain
    return logits


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the largest reference logit; NaN where either holds one."""
    return float((got - want).abs().max() / want.abs().max())
