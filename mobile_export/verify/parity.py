"""Holds a runtime against the same numbers in plain PyTorch, or in float32 against transformers: what the formats share.

A quantized model cannot be held to one tight limit over a text: float32 rounding moves now and then an int8 activation to
its neighbouring code, and 30 blocks make of one such step several percent of a logit (measured in
docs/decisions/0002, by benchmarks/noise_floor.py). So two things are asked. Where nothing is rounded to int8, or on some
short sequence that stays clear of every such edge, the artifact must agree to float32 rounding: a graph that is wrong
anywhere does on none. And over a text it may stray no further from the reference than the reference strays from itself
under rounding noise, which is measured beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from mobile_export.verify.reference import Reference, reference_logits
from mobile_export.verify.verdict import Check

TRIES = 48  # short sequences tried until one agrees
TEXT = 24  # tokens fed one by one
PROMPTS = (1, 2, 3, 7, 12, 24)  # tokens fed in one call
NOISE = 1e-6  # relative, on the embedding: ten times float32's rounding, what other summation orders make of it
FLOAT16_ROUNDING = 2.0**-11  # of a value kept in float16
ROUNDINGS = 8  # float16 values an execution passes on, one after the other
DRAWS = 8  # of noise, where one draw sets limits that do not hold: it may have moved no int8 step by chance
EXACT, FLOOR = 1e-4, 5e-3  # of the largest logit: float32 in another order; one int8 activation in a shallow model
EXACT_REASON = "float32 summed in another order"

Logits = Callable[[list[int]], torch.Tensor]


class Runtime(Protocol):
    """An artifact loaded in the runtime it was made for."""

    def step(self, tokens: list[int], start: int) -> torch.Tensor:
        """Logits float32 [vocab] of the last of `tokens`, which follow `start` cached positions."""


@dataclass(frozen=True)
class NoiseFloor:
    """How far seeded noise on the embedding moves the reference itself, relative to its largest logit.

    want: the reference's logits without it, float32 [T, vocab]. typical, largest: the limits that follow for others.
    """

    want: torch.Tensor
    typical: float
    largest: float
    reason: str


def float16_noise(executions: int) -> float:
    """What the roundings of float16 activations come to, added in quadrature as independent errors are."""
    return FLOAT16_ROUNDING * math.sqrt(ROUNDINGS * executions)


def random_text(vocab_size: int, context: int, max_prompt: int) -> list[int]:
    """Seeded tokens: enough for a text and, where the context allows, for a prompt of more than one call."""
    length = max(TEXT, min(context, max_prompt + 5))
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (length,), generator=generator).tolist()[:context]


def exact_checks(runtime: Runtime, logits: Logits, tokens: list[int], max_prompt: int) -> list[Check]:
    """Agreement to float32 rounding: token by token (cached against uncached), prompts in one call, one in chunks."""
    want = logits(tokens)
    text = tokens[:TEXT]
    chunks = error(in_chunks(runtime, tokens, max_prompt), want[-1])
    return [
        Check("token by token", max(steps(runtime, text, want)), EXACT, EXACT_REASON),
        Check("prompt in one call", max(prompts(runtime, text, want, PROMPTS, max_prompt)), EXACT, EXACT_REASON),
        Check(f"prompt of {len(tokens)} tokens in chunks of {max_prompt}", chunks, EXACT, EXACT_REASON),
    ]


def noise_floor(decoder: Reference, tokens: list[int], noise: float = NOISE, draws: int = 1) -> NoiseFloor:
    """Run the reference once plain and `draws` times under noise, and take the draw that moves it most."""
    want = reference_logits(decoder, tokens)
    moved = [noisy_logits(decoder, tokens, noise, seed) for seed in range(1, draws + 1)]
    floors = torch.tensor([[error(b, a) for a, b in zip(want, noisy, strict=True)] for noisy in moved])
    median, most = float(floors[:, :TEXT].median(dim=1).values.max()), float(floors.max())
    drawn = f" (the largest of {draws} draws)" if draws > 1 else ""
    return NoiseFloor(
        want,
        max(FLOOR, 2 * median),
        max(FLOOR, 3 * most),
        f"noise of {noise:.2g} moves the reference itself by {median:.2g} in the median, {most:.2g} at most{drawn}",
    )


def within_noise(
    checks: Callable[[NoiseFloor], list[Check]], decoder: Reference, tokens: list[int], noise: float = NOISE
) -> list[Check]:
    """Checks under the limits of one draw of noise, or of DRAWS where those do not hold."""
    found = checks(noise_floor(decoder, tokens, noise))
    if all(check.passed for check in found):
        return found
    return checks(noise_floor(decoder, tokens, noise, DRAWS))


def noise_checks(runtime: Runtime, floor: NoiseFloor, tokens: list[int], max_prompt: int) -> list[Check]:
    """Over a text, no further from the reference than noise moves it: token by token, prompts in one call, one in chunks."""
    text = tokens[:TEXT]
    stepwise = torch.tensor(steps(runtime, text, floor.want))
    at_once = prompts(runtime, text, floor.want, PROMPTS, max_prompt)
    chunks = error(in_chunks(runtime, tokens, max_prompt), floor.want[-1])
    return [
        Check("text token by token, median", float(stepwise.median()), floor.typical, floor.reason),
        Check("text token by token, most", float(stepwise.max()), floor.largest, floor.reason),
        Check("prompt in one call, most", max(at_once), floor.largest, floor.reason),
        Check(f"prompt of {len(tokens)} tokens in chunks of {max_prompt}", chunks, floor.largest, floor.reason),
    ]


def short_sequence_checks(runtime: Runtime, decoder: Reference, floor: NoiseFloor, max_prompt: int) -> list[Check]:
    """Among many short sequences one on which artifact and reference agree to float32 rounding."""
    return [
        _best_of_many(runtime, decoder, "one token, the best agreement", 1, 1, floor.largest),
        _best_of_many(runtime, decoder, "two tokens one by one, the best agreement", 2, 1, floor.largest),
        _best_of_many(runtime, decoder, "two tokens in one call, the best agreement", 2, min(2, max_prompt), floor.largest),
    ]


def _best_of_many(runtime: Runtime, decoder: Reference, name: str, length: int, chunk: int, loose: float) -> Check:
    """Some sequence on which artifact and reference agree to float32 rounding.

    Where the noisy reference does not agree with itself on any of them either, the model is too deep for the question,
    and the limit is the loose one.
    """
    generator = torch.Generator().manual_seed(length)
    best, calmest = torch.inf, torch.inf
    for _ in range(TRIES):
        tokens = torch.randint(decoder.spec.vocab_size, (length,), generator=generator).tolist()
        want = reference_logits(decoder, tokens)[-1]
        best = min(best, error(in_chunks(runtime, tokens, chunk), want))
        if best <= EXACT:
            return Check(name, best, EXACT, EXACT_REASON)
        calmest = min(calmest, error(noisy_logits(decoder, tokens)[-1], want))
    if calmest > EXACT:
        return Check(name, best, loose, f"no sequence stays clear of rounding edges: noise of {NOISE:g} moves each")
    return Check(name, best, EXACT, f"{EXACT_REASON}; the reference agrees with itself under noise")


def steps(runtime: Runtime, tokens: list[int], want: torch.Tensor) -> list[float]:
    """Errors of every position when tokens are fed one by one."""
    return [error(runtime.step([token], at), want[at]) for at, token in enumerate(tokens)]


def prompts(runtime: Runtime, tokens: list[int], want: torch.Tensor, lengths: Sequence[int], max_prompt: int) -> list[float]:
    """Errors of the last position when the first tokens are fed in one call, for each length that fits."""
    return [error(runtime.step(tokens[:n], 0), want[n - 1]) for n in lengths if n <= min(max_prompt, len(tokens))]


def in_chunks(runtime: Runtime, tokens: list[int], max_prompt: int) -> torch.Tensor:
    """Logits of the last token when the prompt is fed as a stock runner feeds it."""
    for start in range(0, len(tokens), max_prompt):
        logits = runtime.step(tokens[start : start + max_prompt], start)
    return logits


class _Noisy(nn.Module):
    """An embedding with seeded relative noise."""

    def __init__(self, embedding: nn.Module, noise: float, seed: int) -> None:
        super().__init__()
        self.embedding, self.noise, self.seed = embedding, noise, seed

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        return x * (1 + self.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed)))


def noisy_logits(decoder: Reference, tokens: list[int], noise: float = NOISE, seed: int = 1) -> torch.Tensor:
    """reference_logits of the decoder under seeded relative noise on its embedding, float32 [T, vocab]."""
    plain = decoder.embedding
    decoder.embedding = _Noisy(plain, noise, seed)
    logits = reference_logits(decoder, tokens)
    decoder.embedding = plain
    return logits


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the largest reference logit; NaN where either holds one."""
    return float((got - want).abs().max() / want.abs().max())
