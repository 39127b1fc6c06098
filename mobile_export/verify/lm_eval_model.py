"""An artifact, or any source of logits, as a model of lm-eval: the package scores its tasks on it.

Source: lm_eval.api.model.TemplateLM; truncation, windows and stop strings as lm-eval's own Hugging Face model has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from mobile_export.errors import InputError, UsageError
from mobile_export.verify.continuations import Continuations

Request = tuple[Any, list[int], list[int]]  # what was asked as text, context, continuation
Scored = tuple[float, bool]  # log-probability, whether every token is the most probable one


@dataclass(frozen=True)
class Vocabulary:
    """How texts become tokens: as the artifact's own runner makes them.

    bos_id: put in front of a text where adds_bos, and before a continuation of nothing; eos_ids: what ends a text.
    """

    tokenizer: Tokenizer
    bos_id: int | None
    adds_bos: bool
    eos_ids: tuple[int, ...]

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Tokens; a BOS that is part of the text is not doubled."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos and self.bos_id is not None and ids[:1] != [self.bos_id] else ids


class LogitsModel(TemplateLM):
    """What lm-eval asks of a model, answered from logits.

    truncated: requests whose context lost tokens on its left, because the artifact's context is shorter.
    """

    def __init__(
        self, continuations: Continuations, vocabulary: Vocabulary, max_length: int, say: Callable[[str], None]
    ) -> None:
        """Take the logits of continuations whose context and themselves hold at most max_length + 1 tokens together.

        Raises:
            InputError: the vocabulary has neither a BOS nor an end of text to begin a text with.
        """
        super().__init__()
        self._continuations, self._vocabulary, self.max_length, self._say = continuations, vocabulary, max_length, say
        self.truncated = 0
        begins = (vocabulary.bos_id, *vocabulary.eos_ids)
        found = next((token for token in begins if token is not None), None)
        if found is None:
            raise InputError(
                "tokenizer", "has no BOS and no end of text", "name one in the checkpoint's config and export again"
            )
        self._prefix_token = found

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, or begins one where none ends it."""
        return self._vocabulary.eos_ids[0] if self._vocabulary.eos_ids else self._prefix_token

    @property
    def prefix_token_id(self) -> int:
        """The context of a continuation of nothing."""
        return self._prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens; with BOS where the artifact's texts begin with it, unless add_special_tokens is False."""
        return self._vocabulary.encode(string, bos=self._vocabulary.adds_bos and add_special_tokens is not False)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Scored]:
        """log p(continuation | context) of each request, and whether greedy decoding would give it."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log p(text) of each request, a longer one in windows that share one token with the window before."""
        windows = [
            (number, (None, *make_disjoint_window(window)))
            for number, request in enumerate(requests)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        scores = self._loglikelihood_tokens([window for _, window in windows])
        totals = [0.0] * len(requests)
        for (number, _), (score, _) in zip(windows, scores, strict=True):
            totals[number] += score
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each request, up to the first of its stop strings.

        Raises:
            UsageError: a task that samples, or that leaves no room for its context.
        """
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        asked = normalize_gen_kwargs(settings)
        if asked["do_sample"]:
            raise UsageError("--tasks", "a task samples its answers", "name tasks that decode greedily")
        room = self.max_length - asked["max_gen_toks"]
        if room < 1:
            what = f"a task generates {asked['max_gen_toks']} tokens in a context of {self.max_length}"
            raise UsageError("--tasks", what, "export with a larger --max-context")
        tokenizer, tokens = self._vocabulary.tokenizer, self.tok_encode(context) or [self.prefix_token_id]
        self.truncated += len(tokens) > room
        tokens = tokens[-room:]
        made: list[int] = []
        ends = {self.eot_token_id, *self._vocabulary.eos_ids}
        until = handle_stop_sequences(asked["until"], eos=None)
        text = ""
        while len(made) < asked["max_gen_toks"] and not any(stop and stop in text for stop in until):
            token = int(self._continuations([*tokens, *made], [0])[0].argmax())
            if token in ends:
                break
            made.append(token)
            text = tokenizer.decode(made)
        return postprocess_generated_text(text, until, None)

    def _loglikelihood_tokens(self, requests: list[Request], **_: Any) -> list[Scored]:
        """Requests in the order of their tokens, so that what they share is shared with a neighbour."""
        started, scored = time.monotonic(), {}
        order = sorted(range(len(requests)), key=lambda number: (requests[number][1], requests[number][2]))
        for done, number in enumerate(order, start=1):
            scored[number] = self._score(*requests[number])
            left = (time.monotonic() - started) / done * (len(order) - done)
            self._say(f"scored {done:,} of {len(order):,} answers, {left:,.0f} s left")
        return [scored[number] for number in range(len(requests))]

    def _score(self, asked: Any, context: list[int], continuation: list[int]) -> Scored:
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            what = f"an answer of {len(continuation)} tokens in a context of {self.max_length}"
            raise InputError("--tasks", what, "export with a larger --max-context")
        self.truncated += len(context) > room
        logits = self._continuations(context[-room:], continuation).double().log_softmax(-1)
        tokens = torch.tensor(continuation)
        answer = float(logits.gather(1, tokens[:, None]).sum()), bool((logits.argmax(-1) == tokens).all())
        if asked is not None:
            self.cache_hook.add_partial("loglikelihood", asked, answer)
        return answer
