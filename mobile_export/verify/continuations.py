"""Logits that predict a continuation of a text: all that scoring the choices of a task, or decoding greedily, takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import takewhile

import torch

from mobile_export.manifest import Manifest
from mobile_export.verify.parity import Runtime

# (context, continuation), tokens of both, neither empty -> logits float32 [len(continuation), vocab]: row i predicts
# continuation[i]. The last token is not run.
Continuations = Callable[[Sequence[int], Sequence[int]], torch.Tensor]

CHUNK = 128  # tokens in one call, where a runtime takes any number


class CachedContinuations:
    """In an artifact's runtime, whose cache keeps what a text shares with the one before it.

    Choices of one question share their context, questions their examples: asked in the order of their tokens, the shared
    part is run once.
    """

    def __init__(self, runtime: Runtime, *, chunk: int, all_logits: bool, steps_back: bool) -> None:
        """Take a loaded artifact.

        Args:
            chunk: most tokens in one call.
            all_logits: runtime.logits gives those of every token, not of the last alone.
            steps_back: the cache may be used again from any position; else only from its end, or from nothing.
        """
        self._runtime, self._chunk, self._all, self._steps_back = runtime, chunk, all_logits, steps_back
        self._held: list[int] = []  # what is in the cache
        self._context: list[int] = []
        self._after_context = torch.empty(0)  # logits of its last token: every choice begins with them
        self.tokens_run = 0

    def __call__(self, context: Sequence[int], continuation: Sequence[int]) -> torch.Tensor:
        """Logits float32 [len(continuation), vocab].

        Raises:
            InputError: the runtime refuses a call.
        """
        context, text = list(context), [*context, *continuation[:-1]]
        if context != self._context:
            self._after_context = self._run(context, len(context) - 1)
            self._context = context
        if len(text) == len(context):
            return self._after_context
        return torch.cat([self._after_context, self._run(text, len(context))])

    def _run(self, text: list[int], first: int) -> torch.Tensor:
        """Logits of the tokens from `first` on, once what the cache lacks before them has been run."""
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._held, text, strict=False)))
        start = min(known, first) if self._steps_back or len(self._held) == known <= first else 0
        self.tokens_run += len(text) - start
        self._held = []  # not to be trusted if the runtime fails half-way
        if self._all:
            rows = torch.cat(self._chunks(text, start, self._runtime.logits))  # type: ignore[attr-defined]  # of those that do
        else:
            *_, last = self._chunks(text[: first + 1], start, self._runtime.step)
            rows = torch.stack([last, *(self._runtime.step([text[at]], at) for at in range(first + 1, len(text)))])
        self._held = text
        return rows[first - len(text) :]

    def _chunks(self, text: list[int], start: int, call: Callable[[list[int], int], torch.Tensor]) -> list[torch.Tensor]:
        return [call(text[at : at + self._chunk], at) for at in range(start, len(text), self._chunk)]


def artifact_continuations(runtime: Runtime, manifest: Manifest) -> CachedContinuations:
    """How an artifact's runtime may be asked, from its manifest."""
    kept = manifest.kv_cache
    return CachedContinuations(
        runtime,
        chunk=min(manifest.pte.max_prompt, CHUNK) if manifest.pte else CHUNK,
        all_logits=gives_all_logits(manifest),
        # A ring of rows has forgotten what a state has mixed into one: neither goes back to an earlier position.
        steps_back=kept.state_bytes == 0 and all(rows >= manifest.max_context for rows in kept.rows),
    )


def gives_all_logits(manifest: Manifest) -> bool:
    """Whether a call gives the logits of every token it is given."""
    onnx, coreml = manifest.onnx, manifest.coreml
    return bool(onnx and onnx.all_logits) or bool(coreml and coreml.layout == "stock")


def whole_continuations(logits: Callable[[list[int]], torch.Tensor]) -> Continuations:
    """Those of a model that is run over the whole text: tokens -> logits float32 [T, vocab]."""

    @functools.lru_cache(maxsize=1)  # choices of one token ask for the same text
    def of(text: tuple[int, ...]) -> torch.Tensor:
        return logits(list(text))

    return lambda context, continuation: of((*context, *continuation[:-1]))[len(context) - 1 :]
