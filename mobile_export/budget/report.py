"""What `check` found, as a person reads it at the terminal and in a pull request, and as a script reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobile_export.budget.changes import Change
from mobile_export.budget.facts import ModelFacts
from mobile_export.budget.interval import Interval, total
from mobile_export.budget.plain import plain_memory, plain_verdict
from mobile_export.budget.terms import MIB, Term
from mobile_export.budget.verdict import Answer, Use, Verdict


@dataclass(frozen=True)
class Checked:
    """One run of `check`. verdicts: each phone's, and the change that would make it fit where it does not and one does."""

    title: str
    facts: ModelFacts
    use: Use
    verdicts: Sequence[tuple[Verdict, Change | None]]
    battery: bool

    @property
    def context(self) -> int:
        """KV rows that were judged."""
        return self.use.context or self.facts.max_context

    def headline(self) -> str:
        """The model in a line."""
        blocks, executions = self.facts.stored_blocks, len(self.facts.schedule)
        shared = f", {blocks} blocks run {executions} times" if executions > blocks else ""
        return f"{self.title}: recipe {self.facts.recipe.name}, context {self.context:,}, KV {self.facts.kv_dtype}{shared}"


def as_values(checked: Checked) -> dict[str, Any]:
    """Everything, as plain values."""
    first = checked.verdicts[0][0]
    return {
        "model": checked.title,
        "format": checked.facts.format,
        "recipe": checked.facts.recipe.name,
        "context": checked.context,
        "kv_dtype": checked.facts.kv_dtype,
        "memory": plain_memory(first.memory),
        "verdicts": [plain_verdict(verdict, change) for verdict, change in checked.verdicts],
    }


def as_text(checked: Checked) -> str:
    """Terms, phones, and what would help, for a terminal."""
    lines = [
        checked.headline(),
        "",
        _columns(("at the peak", "dirty MiB", "clean MiB", ""), _term_rows(checked), left=(0, 3)),
        "",
        _columns(_phone_header(checked), [_phone_row(checked, verdict) for verdict, _ in checked.verdicts], left=(0,)),
        *_because(checked),
    ]
    return "\n".join(lines)


def as_markdown(checked: Checked) -> str:
    """The same as tables for a pull request."""
    phones = [_phone_row(checked, verdict) for verdict, _ in checked.verdicts]
    reasons = [f"- {line}" for line in _because(checked) if line]
    return "\n".join(
        [
            f"**{_counts(checked)}** {checked.headline()}",
            "",
            _markdown(_phone_header(checked), phones),
            "",
            *([*reasons, ""] if reasons else []),
            "<details><summary>memory at the peak</summary>",
            "",
            _markdown(("term", "dirty MiB", "clean MiB", "why"), _term_rows(checked)),
            "",
            "</details>",
        ]
    )


def mib(interval: Interval) -> str:
    """ "182 (160 to 210)", or one number where nothing is unknown."""
    return around(interval.times(1 / MIB), 0)


def around(interval: Interval, digits: int) -> str:
    """The likely value, and the ends where they differ from it."""
    likely, low, high = (f"{value:,.{digits}f}" for value in (interval.likely, interval.low, interval.high))
    return likely if low == likely == high else f"{likely} ({low} to {high})"


def reason(answer: Answer) -> str:
    """One limit with what is needed for it, in words."""
    if answer.unit == "bytes":
        return f"{answer.limit} {mib(answer.needed)} MiB, {mib(answer.allowed)} allowed"
    digits, words = (0, "at least") if answer.unit == "tokens/s" else (2, "at most")
    return f"{answer.limit} {around(answer.needed, digits)} {answer.unit}, {words} {answer.allowed.likely:g} asked"


def improvement(verdict: Verdict, change: Change | None) -> str:
    """What would make it fit, with what that would need."""
    if change is None:
        return "no change we know would make it fit"
    missed = [answer.limit for answer in verdict.answers if answer.outcome != "fits"]
    reached = [reason(answer) for answer in change.verdict.answers if answer.limit in missed]
    return f"{change.what} would fit: {'; '.join(reached)}"


def _because(checked: Checked) -> list[str]:
    lines = []
    for verdict, change in checked.verdicts:
        missed = [reason(answer) for answer in verdict.answers if answer.outcome != "fits"]
        if missed:
            lines.append(f"{verdict.target.name}: {'; '.join(missed)}; {improvement(verdict, change)}")
    return ["", *lines] if lines else []


def _counts(checked: Checked) -> str:
    outcomes = [verdict.outcome for verdict, _ in checked.verdicts]
    named = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("fits", "does not fit", "uncertain") if outcome in outcomes]
    return ", ".join(named) + "."


def _term_rows(checked: Checked) -> list[tuple[str, ...]]:
    memory = checked.verdicts[0][0].memory
    terms = memory.peak_terms
    rows: list[tuple[str, ...]] = [(term.name, _one(term.dirty), _one(term.clean), term.why) for term in _by_size(terms)]
    together = total(term.bytes for term in terms)
    every = f"{together.likely / MIB:,.1f} in all; {together.low / MIB:,.1f} to {together.high / MIB:,.1f}"
    rows.append(("together", _one(total(t.dirty for t in terms)), _one(total(t.clean for t in terms)), every))
    return rows


def _by_size(terms: Sequence[Term]) -> list[Term]:
    return sorted(terms, key=lambda term: -term.bytes.likely)


def _one(interval: Interval) -> str:
    return f"{interval.likely / MIB:,.1f}"


def _phone_header(checked: Checked) -> tuple[str, ...]:
    rated = any(verdict.rates for verdict, _ in checked.verdicts)
    return (
        "phone",
        "DRAM GB",
        "needs MiB",
        "allowed MiB",
        *(("tokens/s", "first token s") if rated else ()),
        *(("J a token", "tokens a %") if checked.battery else ()),
        "",
    )


def _phone_row(checked: Checked, verdict: Verdict) -> tuple[str, ...]:
    memory = verdict.answers[0]
    rated = any(other.rates for other, _ in checked.verdicts)
    rates, energy = verdict.rates, verdict.energy
    return (
        verdict.target.name,
        f"{verdict.target.dram_bytes.likely / 2**30:.3g}",
        mib(memory.needed),
        mib(memory.allowed),
        *((around(rates.decode_tokens_per_s, 0), around(rates.first_token_s, 2)) if rates else ("-", "-") if rated else ()),
        *((around(energy.joules_a_token, 3), around(energy.tokens_a_percent, 0)) if checked.battery and energy else ()),
        verdict.outcome,
    )


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    shown = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in shown)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:-1]), "---"]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, rule, *rows))
