"""Times the steps of a loaded model: a prompt, the prompt again, then one token a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

PREFILL_REPEATS = 5
WARM_UP_TOKENS = 8
FIRST_TOKEN = 3  # the prompt counts up from here: fixed tokens, no sampling in the time


@dataclass(frozen=True)
class StepTimes:
    """Rates of one loaded model.

    first_token_ms: the first call ever, prompt_tokens long. prefill_tokens_per_s: the same prompt again, median.
    decode_tokens_per_s: 1 / median seconds a token, one token a call, after the prompt and WARM_UP_TOKENS.
    *_tokens_per_cpu_s: tokens over the CPU seconds of all threads: what other work on the machine hardly moves.
    """

    prompt_tokens: int
    new_tokens: int
    first_token_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_tokens_per_cpu_s: float
    decode_tokens_per_cpu_s: float


def time_steps(step: Callable[[list[int], int], object], prompt_tokens: int, new_tokens: int) -> StepTimes:
    """Time a model's calls.

    Args:
        step: runs tokens that follow `start` cached positions; a sequence begins wherever start is 0.
    """
    prompt = list(range(FIRST_TOKEN, FIRST_TOKEN + prompt_tokens))
    first_s, _ = _time_call(step, prompt, 0)
    prefill = [_time_call(step, prompt, 0) for _ in range(PREFILL_REPEATS)]
    decode = [_time_call(step, [FIRST_TOKEN + n], prompt_tokens + n) for n in range(WARM_UP_TOKENS + new_tokens)]
    decode = decode[WARM_UP_TOKENS:]
    return StepTimes(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        first_token_ms=1e3 * first_s,
        prefill_tokens_per_s=prompt_tokens / statistics.median(wall_s for wall_s, _ in prefill),
        decode_tokens_per_s=1 / statistics.median(wall_s for wall_s, _ in decode),
        prefill_tokens_per_cpu_s=prompt_tokens * len(prefill) / sum(cpu_s for _, cpu_s in prefill),
        decode_tokens_per_cpu_s=len(decode) / sum(cpu_s for _, cpu_s in decode),
    )


def _time_call(step: Callable[[list[int], int], object], tokens: list[int], start: int) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    began, cpu_began = time.perf_counter(), time.process_time()
    step(tokens, start)
    return time.perf_counter() - began, time.process_time() - cpu_began
