"""How long a token takes: a roofline over each execution of a block and over the head, and a cost of every execution.

    seconds a token = sum over executions and the head of max(bytes streamed / bandwidth, operations / rate) + overhead
                      + the same of attention, over all keys and values

A block that runs twice in a row is streamed once if it fits the cache that is left over: layer sharing as the MobileLLM
paper means it (arXiv:2402.14905, section 2.3). Its operations are done twice all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mobile_export.budget.calibration import Calibration, Speeds
from mobile_export.budget.facts import Executions, ModelFacts, Work
from mobile_export.budget.interval import Interval
from mobile_export.families.spec import DecoderSpec

CURVE_POINTS = 9


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
    prefill = _interval(calibration, lambda speeds: prefill_seconds(facts, speeds, prompt_tokens))
    reused = reused_executions(facts, calibration.likely().cache_bytes, position)
    streamed = sum(kind.work.bytes * kind.count for kind in facts.executions if kind not in reused)
    streamed += sum(work.bytes for work in facts.outer_work) + facts.kv_bytes(position)
    return Rates(
        _decode_rate(facts, calibration, position),
        prefill,
        position,
        prompt_tokens,
        streamed,
        sum(kind.count for kind in reused),
    )


def decode_curve(facts: ModelFacts, calibration: Calibration, context: int) -> tuple[tuple[int, Interval], ...]:
    """Decode rates, tokens a second, with an empty cache, a full one, and CURVE_POINTS - 2 steps between."""
    last = max(context - 1, 1)
    positions = sorted({round(last * point / (CURVE_POINTS - 1)) for point in range(CURVE_POINTS)})
    return tuple((position, _decode_rate(facts, calibration, position)) for position in positions)


def decode_seconds(facts: ModelFacts, speeds: Speeds, position: int) -> float:
    """Seconds of one decoded token."""
    reused = reused_executions(facts, speeds.cache_bytes, position)
    attention = attention_operations(facts, position) / speeds.attention_ops
    seconds = max(facts.kv_bytes(position) / speeds.stream, attention) + _outer_seconds(facts, speeds)
    for kind in facts.executions:
        streamed = 0 if kind in reused else kind.work.bytes
        seconds += kind.count * (max(streamed / speeds.stream, _compute(kind.work, speeds)) + speeds.overhead_s)
    return seconds


def prefill_seconds(facts: ModelFacts, speeds: Speeds, prompt_tokens: int) -> float:
    """Seconds until the first token: the prompt's operations, no faster than each call can stream the weights."""
    seconds, start = 0.0, 0
    streamed = sum(kind.work.bytes * kind.count for kind in facts.executions)
    parameters = sum(kind.work.parameters * kind.count for kind in facts.executions)
    while start < prompt_tokens:
        tokens = min(facts.prompt_chunk, prompt_tokens - start)
        attention = attention_operations(facts, start + tokens / 2)
        operations = tokens * (2.0 * parameters + attention)
        seconds += max(streamed / speeds.stream, operations / speeds.prefill_ops) + speeds.overhead_s * len(facts.schedule)
        start += tokens
    return seconds + _outer_seconds(facts, speeds)


def reused_executions(facts: ModelFacts, cache_bytes: float, position: int) -> list[Executions]:
    """Executions that find their weights in the cache: the block just ran, and fits beside its keys and values."""
    room = cache_bytes - kv_slot_bytes(facts, position)
    return [kind for kind in facts.executions if kind.again and kind.work.bytes <= room]


def kv_slot_bytes(facts: ModelFacts, position: int) -> int:
    """Bytes of keys and values one execution reads at a position."""
    return facts.kv_bytes(position) // facts.slots if facts.slots else 0


def attention_operations(facts: ModelFacts, position: float) -> float:
    """Operations of one token's scores and mixed values, over all slots."""
    return 4.0 * facts.spec.attended_size * facts.attended_positions(position) if isinstance(facts.spec, DecoderSpec) else 0.0


def _outer_seconds(facts: ModelFacts, speeds: Speeds) -> float:
    """The head, once a call, and projections around the stream."""
    return sum(max(work.bytes / speeds.stream, _compute(work, speeds)) for work in facts.outer_work)


def _compute(work: Work, speeds: Speeds) -> float:
    return 2.0 * work.parameters_4_bit / speeds.ops_4_bit + 2.0 * work.parameters_wider / speeds.ops_8_bit


def _decode_rate(facts: ModelFacts, calibration: Calibration, position: int) -> Interval:
    return _interval(calibration, lambda speeds: decode_seconds(facts, speeds, position)).per(1)


def _interval(calibration: Calibration, seconds: Callable[[Speeds], float]) -> Interval:
    return Interval(*(seconds(speeds) for speeds in (calibration.fastest(), calibration.likely(), calibration.slowest())))
