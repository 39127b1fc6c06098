"""A verdict as plain values, for --json: bytes and seconds as numbers, intervals as [low, likely, high]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mobile_export.budget.changes import Change
from mobile_export.budget.interval import Interval
from mobile_export.budget.terms import MemoryEstimate, Term
from mobile_export.budget.verdict import Answer, Verdict


def plain_verdict(verdict: Verdict, change: Change | None) -> dict[str, Any]:
    """Everything about one phone."""
    rates, energy, phone = verdict.rates, verdict.energy, verdict.target.phone
    return {
        "phone": verdict.target.name,
        "outcome": verdict.outcome,
        "answers": [_answer(answer) for answer in verdict.answers],
        "decode_tokens_per_s": ends(rates.decode_tokens_per_s) if rates else None,
        "first_token_s": ends(rates.first_token_s) if rates else None,
        "streamed_bytes": rates.streamed_bytes if rates else None,
        "reused_executions": rates.reused_executions if rates else None,
        "joules_a_token": ends(energy.joules_a_token) if energy else None,
        "speed_from": verdict.target.calibration.source if verdict.target.calibration else None,
        "change": {"what": change.what, "answers": [_answer(a) for a in change.verdict.answers]} if change else None,
        "sources": phone.sources if phone else {},
    }


def plain_memory(memory: MemoryEstimate) -> dict[str, Any]:
    """Every term, and what they add up to."""
    return {
        "terms": [_term(term) for term in memory.terms],
        "peak_bytes": ends(memory.peak),
        "peak_dirty_bytes": ends(memory.peak_dirty),
    }


def ends(interval: Interval) -> Sequence[float]:
    """[low, likely, high]."""
    return [interval.low, interval.likely, interval.high]


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "limit": answer.limit,
        "needed": ends(answer.needed),
        "allowed": ends(answer.allowed),
        "unit": answer.unit,
        "outcome": answer.outcome,
    }


def _term(term: Term) -> dict[str, Any]:
    return {
        "name": term.name,
        "dirty_bytes": ends(term.dirty),
        "clean_bytes": ends(term.clean),
        "when": term.when,
        "why": term.why,
    }
