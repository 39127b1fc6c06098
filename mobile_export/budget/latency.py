"""How long a token takes: a roofline over each execution of a block and over the head, and a cost of every execution.

    seconds a token = sum over executions and the head of max(bytes streamed / bandwidth, operations / rate) + overhead

A block that runs twice in a row is streamed once if it fits the cache that is left over: layer sharing as the MobileLLM
paper means it (arXiv:2402.14905, section 2.3). Its operations are done twice all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mobile_export.budget.calibration import Calibration, Speeds
from mobile_export.budget.facts import ModelFacts, Work
from mobile_export.budget.interval import Interval
from mobile_export.families.spec import DecoderSpec


@dataclass(frozen=True)
class Rates:
    """Predicted speed. decode: after `position` tokens of text; first_token_s: a prompt of prompt_tokens in its calls.

    streamed_bytes: what a decoded token reads from DRAM. reused_executions: those that find their weights in the cache.
    """

    decode_tokens_per_s: Interval
    first_token_s: Interval
    position: int
    prompt_tokens: int
    streamed_bytes: int
    reused_executions: int


def predict_rates(facts: ModelFacts, calibration: Calibration, *, position: int, prompt_tokens: int) -> Rates:
    """The speed of a model on a phone.

    Args:
        position: tokens already in the cache while one is decoded.
        prompt_tokens: of the text before the first token.
    """
    decode = _interval(calibration, lambda speeds: decode_seconds(facts, speeds, position))
    prefill = _interval(calibration, lambda speeds: prefill_seconds(facts, speeds, prompt_tokens))
    reused = reused_executions(facts, calibration.likely().cache_bytes, position)
    streamed = sum(facts.work[stored].bytes for place, stored in enumerate(facts.schedule) if place not in reused)
    streamed += sum(work.bytes for work in facts.outer_work) + facts.kv_bytes(position)
    return Rates(decode.per(1), prefill, position, prompt_tokens, streamed, len(reused))


def decode_seconds(facts: ModelFacts, speeds: Speeds, position: int) -> float:
    """Seconds of one decoded token."""
    reused = reused_executions(facts, speeds.cache_bytes, position)
    kv_bytes, attention = kv_slot_bytes(facts, position), attention_operations(facts, position) / speeds.ops_8_bit
    seconds = 0.0
    for place, stored in enumerate(facts.schedule):
        streamed = (0 if place in reused else facts.work[stored].bytes) + kv_bytes
        seconds += max(streamed / speeds.stream, _compute(facts.work[stored], speeds) + attention) + speeds.overhead_s
    return seconds + _outer_seconds(facts, speeds)


def prefill_seconds(facts: ModelFacts, speeds: Speeds, prompt_tokens: int) -> float:
    """Seconds until the first token: the prompt's operations, no faster than each call can stream the weights."""
    seconds, start = 0.0, 0
    streamed = sum(facts.work[stored].bytes for stored in facts.schedule)
    parameters = sum(facts.work[stored].parameters for stored in facts.schedule)
    while start < prompt_tokens:
        tokens = min(facts.prompt_chunk, prompt_tokens - start)
        attention = len(facts.schedule) * attention_operations(facts, start + tokens / 2)
        operations = tokens * (2.0 * parameters + attention)
        seconds += max(streamed / speeds.stream, operations / speeds.prefill_ops) + speeds.overhead_s * len(facts.schedule)
        start += tokens
    return seconds + _outer_seconds(facts, speeds)


def reused_executions(facts: ModelFacts, cache_bytes: float, position: int) -> set[int]:
    """Places in the schedule that find their weights in the cache: the block just ran, and fits beside its keys and values."""
    room = cache_bytes - kv_slot_bytes(facts, position)
    return {
        place
        for place in range(1, len(facts.schedule))
        if facts.schedule[place] == facts.schedule[place - 1] and facts.work[facts.schedule[place]].bytes <= room
    }


def kv_slot_bytes(facts: ModelFacts, position: int) -> int:
    """Bytes of keys and values one execution reads at a position."""
    return facts.kv_bytes(position) // facts.slots if facts.slots else 0


def attention_operations(facts: ModelFacts, position: float) -> float:
    """Operations of one token's scores and mixed values in one execution."""
    return 4.0 * facts.spec.attended_size * position if isinstance(facts.spec, DecoderSpec) else 0.0


def _outer_seconds(facts: ModelFacts, speeds: Speeds) -> float:
    """The head, once a call, and projections around the stream."""
    return sum(max(work.bytes / speeds.stream, _compute(work, speeds)) for work in facts.outer_work)


def _compute(work: Work, speeds: Speeds) -> float:
    return 2.0 * work.parameters_4_bit / speeds.ops_4_bit + 2.0 * work.parameters_wider / speeds.ops_8_bit


def _interval(calibration: Calibration, seconds: Callable[[Speeds], float]) -> Interval:
    return Interval(*(seconds(speeds) for speeds in (calibration.fastest(), calibration.likely(), calibration.slowest())))
