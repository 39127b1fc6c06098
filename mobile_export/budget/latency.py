"""How long a token takes: a roofline over each execution of a block and over the head, and a cost of every execution.

    seconds a token = sum over executions and the head of max(bytes streamed / bandwidth, operations / rate) + overhead
                      + the same of attention, over all keys and values + values between products / their rate

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
# An int8 cache on x86-64, measured: attention unpacks it, and ExecuTorch makes the codes of each query, key and value on one
# thread, which takes as long as so many values between products.
INT8_ATTENTION, INT8_VALUES = 1.3, 24


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
    seconds = max(facts.kv_bytes(position) / speeds.stream, attention)
    each = speeds.overhead_s + activation_values(facts) / speeds.activations
    for kind in facts.executions:
        computed = _compute(kind.work, speeds.ops_4_bit, speeds.ops_8_bit)
        streamed = 0 if kind in reused else _stream(kind.work, speeds)
        seconds += kind.count * (max(streamed, computed) + each)
    return seconds + _outer_seconds(facts, speeds)


def prefill_seconds(facts: ModelFacts, speeds: Speeds, prompt_tokens: int) -> float:
    """Seconds until the first token: the prompt's operations, no faster than each call can stream the weights."""
    seconds, start = 0.0, 0
    streamed = sum(_stream(kind.work, speeds) * kind.count for kind in facts.executions)
    computed = sum(
        _compute(kind.work, speeds.prefill_ops_4_bit, speeds.prefill_ops_8_bit) * kind.count for kind in facts.executions
    )
    while start < prompt_tokens:
        tokens = min(facts.prompt_chunk, prompt_tokens - start)
        attention = attention_operations(facts, start + tokens / 2) / speeds.prefill_attention_ops
        between = len(facts.schedule) * activation_values(facts) / speeds.activations
        seconds += max(streamed, tokens * computed) + tokens * (attention + between)
        seconds += speeds.overhead_s * len(facts.schedule)
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
    """Operations of one token's scores and mixed values, over all slots; unpacking codes counts like more of them."""
    if not isinstance(facts.spec, DecoderSpec):
        return 0.0
    unpacking = INT8_ATTENTION if facts.kv_dtype == "int8" else 1.0
    return 4.0 * unpacking * facts.spec.attended_size * facts.attended_positions(position)


def activation_values(facts: ModelFacts) -> int:
    """Values an execution writes between products for a token: norms, rotations, quantized inputs, the gate, both sums."""
    codes = facts.spec.qkv_size if isinstance(facts.spec, DecoderSpec) and facts.kv_dtype == "int8" else 0
    return 12 * facts.spec.hidden_size + 4 * facts.spec.intermediate_size + INT8_VALUES * codes


def _outer_seconds(facts: ModelFacts, speeds: Speeds) -> float:
    """The head, once a call, and projections around the stream."""
    return sum(max(_stream(work, speeds), _compute(work, speeds.ops_4_bit, speeds.ops_8_bit)) for work in facts.outer_work)


def _stream(work: Work, speeds: Speeds) -> float:
    return work.bytes_4_bit / speeds.stream_4_bit + work.bytes_wider / speeds.stream


def _compute(work: Work, ops_4_bit: float, ops_8_bit: float) -> float:
    return 2.0 * work.parameters_4_bit / ops_4_bit + 2.0 * work.parameters_wider / ops_8_bit


def _decode_rate(facts: ModelFacts, calibration: Calibration, position: int) -> Interval:
    return _interval(calibration, lambda speeds: decode_seconds(facts, speeds, position)).per(1)


def _interval(calibration: Calibration, seconds: Callable[[Speeds], float]) -> Interval:
    return Interval(*(seconds(speeds) for speeds in (calibration.fastest(), calibration.likely(), calibration.slowest())))
