"""Does it fit: each limit answered by itself, the phone by the worst of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mobile_export.budget.calibration import Calibration, calibration_of_phone
from mobile_export.budget.energy import Energy, predict_energy
from mobile_export.budget.facts import ModelFacts
from mobile_export.budget.interval import Interval, exactly
from mobile_export.budget.latency import Rates, predict_rates
from mobile_export.budget.memory import USUAL_ONNXRUNTIME, estimate_memory
from mobile_export.budget.phones import Phone
from mobile_export.budget.terms import MemoryEstimate

Outcome = Literal["fits", "uncertain", "does not fit"]
WORST: tuple[Outcome, ...] = ("does not fit", "uncertain", "fits")
USUAL_SHARE = 0.1  # of the DRAM: what an app should stay within (MobileLLM, arXiv:2402.14905, introduction)


@dataclass(frozen=True)
class Limits:
    """What is asked. share: of the DRAM; max_memory_bytes: instead of it, where given. The rest: None is not asked."""

    share: float = USUAL_SHARE
    max_memory_bytes: int | None = None
    max_first_token_s: float | None = None
    min_decode_tokens_per_s: float | None = None


@dataclass(frozen=True)
class Use:
    """How the model would run. context, prompt_chunk: None for the model's own."""

    context: int | None = None
    prompt_chunk: int | None = None
    prompt_tokens: int = 128
    onnxruntime: tuple[int, int] = USUAL_ONNXRUNTIME
    packed_file: bool = False


@dataclass(frozen=True)
class Target:
    """What it is checked for: a phone, or an amount of DRAM alone. calibration: None where nothing is known of its speed.

    app_limit_bytes: most dirty memory the system grants; reserve_bytes: what it keeps to itself. None where nobody says.
    """

    name: str
    dram_bytes: Interval
    app_limit_bytes: Interval | None = None
    calibration: Calibration | None = None
    phone: Phone | None = None
    reserve_bytes: Interval | None = None


@dataclass(frozen=True)
class Answer:
    """One limit: what is needed, what is allowed, and whether the one lies within the other, whatever is not known."""

    limit: str
    needed: Interval
    allowed: Interval
    unit: Literal["bytes", "s", "tokens/s"]
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    """All about one phone. rates, energy: None where nothing is known of its speed."""

    target: Target
    outcome: Outcome
    answers: tuple[Answer, ...]
    memory: MemoryEstimate
    rates: Rates | None = field(default=None)
    energy: Energy | None = field(default=None)


def target_of_phone(phone: Phone) -> Target:
    """A phone of the table, as fast as the table lets expect."""
    limit, reserve = phone.row.app_limit_mib, phone.row.os_reserve_mib
    return Target(
        phone.name,
        phone.dram_bytes,
        limit.interval.times(2**20) if limit else None,
        calibration_of_phone(phone),
        phone,
        reserve.interval.times(2**20) if reserve else None,
    )


def judge(facts: ModelFacts, target: Target, limits: Limits, use: Use) -> Verdict:
    """Hold a model against a phone."""
    memory = estimate_memory(
        facts,
        context=use.context,
        prompt_chunk=use.prompt_chunk,
        onnxruntime=use.onnxruntime,
        packed_file=use.packed_file,
    )
    shared = target.dram_bytes.times(limits.share)
    allowed = exactly(limits.max_memory_bytes) if limits.max_memory_bytes is not None else shared
    answers = [_at_most("memory", memory.peak, allowed, "bytes")]
    if target.app_limit_bytes is not None:
        answers.append(_at_most("app limit", memory.peak_dirty, target.app_limit_bytes, "bytes"))
    if target.reserve_bytes is not None:
        answers.append(_at_most("left by the system", memory.peak, target.dram_bytes.minus(target.reserve_bytes), "bytes"))
    rates = energy = None
    if target.calibration is not None:
        context = use.context or facts.max_context
        position = min(use.prompt_tokens, context - 1)
        rates = predict_rates(facts, target.calibration, position=position, prompt_tokens=min(use.prompt_tokens, context))
        energy = predict_energy(facts, rates.streamed_bytes)
        if limits.max_first_token_s is not None:
            answers.append(_at_most("first token", rates.first_token_s, exactly(limits.max_first_token_s), "s"))
        if limits.min_decode_tokens_per_s is not None:
            asked = exactly(limits.min_decode_tokens_per_s)
            answers.append(_at_least("decode rate", rates.decode_tokens_per_s, asked, "tokens/s"))
    outcome = min((answer.outcome for answer in answers), key=WORST.index)
    return Verdict(target, outcome, tuple(answers), memory, rates, energy)


def _at_most(limit: str, needed: Interval, allowed: Interval, unit: Literal["bytes", "s"]) -> Answer:
    outcome: Outcome = "fits" if needed.high <= allowed.low else "does not fit" if needed.low > allowed.high else "uncertain"
    return Answer(limit, needed, allowed, unit, outcome)


def _at_least(limit: str, reached: Interval, asked: Interval, unit: Literal["tokens/s"]) -> Answer:
    outcome: Outcome = "fits" if reached.low >= asked.high else "does not fit" if reached.high < asked.low else "uncertain"
    return Answer(limit, reached, asked, unit, outcome)
