"""What quantization cost: the artifact itself against the float checkpoint, position by position over a text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

Logits = Callable[[list[int]], torch.Tensor]  # a window's tokens -> logits float32 [T, vocab]


@dataclass(frozen=True)
class Quality:
    """Figures over every predicted token; errors are standard errors of the mean, tokens taken as independent.

    perplexity: of the artifact. reference_perplexity: of the float checkpoint.
    perplexity_increase: their ratio less 1; its error is that of the mean difference of log-probabilities.
    kl: divergence of the artifact's distribution from the float one's, in nats; kl_p99 its 99th percentile.
    top1: share of positions where both put the same token first.
    What compares is None without a checkpoint.
    """

    tokens: int
    perplexity: float
    perplexity_error: float
    reference_perplexity: float | None = None
    perplexity_increase: float | None = None
    perplexity_increase_error: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    kl_p99: float | None = None
    top1: float | None = None


def windows_of(tokens: Sequence[int], length: int, bos: int | None) -> Iterator[list[int]]:
    """Cut a text into windows of `length` tokens, each beginning with BOS where the model wants it.

    >>> list(windows_of([5, 6, 7, 8, 9], 3, None))
    [[5, 6, 7], [8, 9]]
    >>> list(windows_of([5, 6, 7, 8], 3, 1))
    [[1, 5, 6], [1, 7, 8]]
    """
    begin = [] if bos is None else [bos]
    step = length - len(begin)
    for at in range(0, len(tokens), step):
        window = [*begin, *tokens[at : at + step]]
        if len(window) > 1:
            yield window


def measure_quality(
    windows: Sequence[list[int]], artifact: Logits, reference: Logits | None, say: Callable[[str], None]
) -> Quality:
    """Run both over every window; each position but the last predicts the token after it.

    Args:
        reference: of the float checkpoint; None where there is none to compare with.
        say: told how far it is, and how long it will take.
    """
    started, total, done = time.monotonic(), sum(len(window) - 1 for window in windows), 0
    losses, differences, divergences, agreements = [], [], [], []
    for window in windows:
        followed = torch.tensor(window[1:])[:, None]
        found = artifact(window)[:-1].double().log_softmax(-1)
        loss = -found.gather(1, followed)[:, 0]
        losses.append(loss)
        if reference is not None:
            wanted = reference(window)[:-1].double().log_softmax(-1)
            differences.append(loss + wanted.gather(1, followed)[:, 0])
            divergences.append((wanted.exp() * (wanted - found)).sum(-1))
            agreements.append((wanted.argmax(-1) == found.argmax(-1)).double())
        done += len(window) - 1
        left = (time.monotonic() - started) / done * (total - done)
        say(f"evaluated {done:,} of {total:,} tokens, {left:,.0f} s left")
    loss = torch.cat(losses)
    perplexity = math.exp(loss.mean())
    plain = Quality(len(loss), perplexity, perplexity * _error(loss))
    if reference is None:
        return plain
    difference, divergence = torch.cat(differences), torch.cat(divergences)
    ratio = math.exp(difference.mean())
    return Quality(
        plain.tokens,
        plain.perplexity,
        plain.perplexity_error,
        perplexity / ratio,
        ratio - 1,
        ratio * _error(difference),
        float(divergence.mean()),
        _error(divergence),
        float(divergence.quantile(0.99)) if len(divergence) > 1 else float(divergence),
        float(torch.cat(agreements).mean()),
    )


def _error(values: torch.Tensor) -> float:
    """Standard error of the mean; infinite for a single value, which says nothing of its spread."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.inf
