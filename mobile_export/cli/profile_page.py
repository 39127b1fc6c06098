"""What `profile` found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mobile_export.cli.say import table
from mobile_export.units import counted

if TYPE_CHECKING:
    from mobile_export.measure.phone import Agreement, Conditions
    from mobile_export.measure.profile import AtThreads, OperatorTime, Profile, Spread

ROWS: tuple[tuple[str, Callable[[AtThreads], str]], ...] = (
    ("load, ms", lambda at: _spread(at.load_s, 1e3, 1)),
    ("init, ms", lambda at: _spread(at.init_s, 1e3, 0)),
    ("first token, ms", lambda at: _spread(at.first_token_s, 1e3, 0)),
    ("prefill, tokens/s", lambda at: _spread(at.prefill_tokens_per_s, 1, 0)),
    ("decode, tokens/s", lambda at: _spread(at.decode_tokens_per_s, 1, 1)),
    ("99 % of tokens within, ms", lambda at: _spread(at.slow_token_s, 1e3, 1)),
    ("dirty after init, MiB", lambda at: f"{at.memory.dirty_after_init_mib:.1f}"),
    ("dirty at the end, MiB", lambda at: f"{at.memory.dirty_at_end_mib:.1f}"),
    ("clean at the end, MiB", lambda at: f"{at.memory.clean_at_end_mib:.1f}"),
    ("peak RSS of the process, MiB", lambda at: f"{at.memory.peak_rss_mib:.1f}"),
)


def phones_page(profiles: Sequence[Profile]) -> str:
    """One column a phone, each at the number of threads that is best there."""
    first = profiles[0]
    header = ["", *(found.phone.name if found.phone else found.machine.cpu for found in profiles)]
    told: list[tuple[str, Callable[[Profile], str]]] = [
        ("serial", lambda found: found.phone.serial if found.phone else ""),
        ("chip", lambda found: (found.phone and found.phone.soc) or "?"),
        ("Android", lambda found: (found.phone and found.phone.android) or "?"),
        ("DRAM, MiB", lambda found: _or_unknown(found.machine.memory_mib, "{:.0f}")),
        ("thermal status", lambda found: _thermal(found.conditions) if found.conditions else "?"),
        ("logits", lambda found: _agreement(found.agreement)),
        ("best threads", lambda found: str(found.best_threads)),
    ]
    rows = [[title, *(value(found) for found in profiles)] for title, value in told]
    rows += [[title, *(value(found.best) for found in profiles)] for title, value in ROWS]
    return "\n".join([_headline(first), "", table(header, rows)])


def page(found: Profile) -> str:
    """Everything about one profile."""
    machine, counts = found.machine, found.by_threads
    header = ["", *map(_threads, counts)]
    lines = [
        _headline(found),
        f"{machine.cpu}, {machine.cores} cores, {_or_unknown(machine.memory_mib, '{:.0f}')} MiB; {machine.system}",
        "",
        table(header, [[title, *(value(at) for at in counts)] for title, value in ROWS]),
        "",
    ]
    if found.cold:
        lines.append(
            f"cold start  load {1e3 * found.cold.load_s:.1f} ms, init {1e3 * found.cold.init_s:.0f} ms, "
            f"first token {1e3 * found.cold.first_token_s:.0f} ms"
        )
    if len(counts) > 1:
        lines.append(f"best        {_threads(found.best)}, {found.best.decode_tokens_per_s.median:.1f} tokens/s decode")
    lines += phone_lines(found)
    if found.operators:
        lines += ["", _operators(found.operators)]
    return "\n".join(lines).rstrip()


def _threads(at: AtThreads) -> str:
    return counted(at.threads, "thread")


def _operators(operators: Sequence[OperatorTime]) -> str:
    rows = [
        (line.name, "delegate" if line.delegate else "", f"{line.calls}", f"{line.milliseconds:.3f}", f"{100 * line.share:.1f}")
        for line in operators
    ]
    return table(("operator", "", "calls", "ms a token", "%"), rows, left=2)


def _spread(values: Spread, factor: float, digits: int) -> str:
    median, least, largest = (f"{factor * value:,.{digits}f}" for value in (values.median, values.least, values.largest))
    return f"{median} ({least} to {largest})"


def phone_lines(found: Profile) -> list[str]:
    """How the phone was, and whether it computes what this machine does; nothing of a profile made elsewhere."""
    conditions = found.conditions
    if conditions is None:
        return []
    on = f"cores {','.join(map(str, conditions.cores))}" if conditions.cores else "all cores"
    clocks = "fixed clocks" if conditions.fixed_clocks else "clocks as the system sets them"
    parts = [on, clocks, f"rest {conditions.rest_s:g} s", f"thermal status {_thermal(conditions)}"]
    if conditions.battery_percent is not None:
        degrees = "" if conditions.battery_celsius is None else f", {conditions.battery_celsius:.1f} C"
        cable = {True: ", on a cable", False: ", on no cable", None: ""}[conditions.powered]
        parts.append(f"battery {conditions.battery_percent} %{degrees}{cable}")
    if conditions.watts is not None:
        parts.append(f"{conditions.watts:.2f} W while running")
    return [f"conditions  {', '.join(parts)}", f"logits      {_agreement(found.agreement)}"]


def _headline(found: Profile) -> str:
    return (
        f"{found.artifact}: {found.runtime}, weights {found.weights}, prompt {found.prompt_tokens}, "
        f"{found.new_tokens} new tokens; median (least to largest) of {found.runs} runs"
    )


def _thermal(conditions: Conditions) -> str:
    from mobile_export.measure.phone import THERMAL

    before, after = (
        "?" if status is None else THERMAL[status] for status in (conditions.thermal_before, conditions.thermal_after)
    )
    return before if before == after else f"{before}, then {after}"


def _agreement(found: Agreement | None) -> str:
    if found is None:
        return "not compared"
    told = f"{found.difference:.1g} of the largest from this machine's"
    return told if found.agrees else f"WRONG: {told}"


def _or_unknown(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)
