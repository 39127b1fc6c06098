"""Measures models in turn, round after round, and sets each beside one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from benchmarks.report import paired_ratio, print_table, spread

M = TypeVar("M")


@dataclass(frozen=True)
class Row(Generic[M]):
    """One quantity of a measurement, and the digits it is printed with."""

    title: str
    value: Callable[[M], float]
    digits: int


def in_turn(
    models: Sequence[str], threads: Sequence[int], rounds: int, measure: Callable[[str, int], M]
) -> dict[int, dict[str, list[M]]]:
    """Threads -> model -> one measurement a round.

    A B C, then C B A, and so on: a machine that slows down or speeds up steadily favours no model.
    """
    by_threads: dict[int, dict[str, list[M]]] = {count: {name: [] for name in models} for count in threads}
    for number in range(rounds):
        for count, runs in by_threads.items():
            for name in models if number % 2 == 0 else reversed(models):
                say(f"round {number + 1} of {rounds}: {name}, threads {count}")
                runs[name].append(measure(name, count))
    return by_threads


def say(line: str) -> None:
    """Progress, for a terminal only."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


def compare(measured: Sequence[M], with_these: Sequence[M], value: Callable[[M], float]) -> float:
    """Median over the rounds of one model's value / the other's."""
    return paired_ratio([value(m) for m in measured], [value(m) for m in with_these])


def print_comparison(
    title: str, rows: Sequence[Row[M]], runs: Mapping[str, Sequence[M]], against: str, *, markdown: bool
) -> None:
    """One table: a row per quantity, for each model its median and spread, and its ratio to the one it is held against."""
    columns = ["", against]
    for name in runs:
        columns += [name, f"x {against}"] if name != against else []
    lines = []
    for row in rows:
        held = [row.value(m) for m in runs[against]]
        line = [row.title, spread(held, row.digits)]
        for name, measured in runs.items():
            if name != against:
                values = [row.value(m) for m in measured]
                line += [spread(values, row.digits), f"{paired_ratio(values, held):.3f}" if all(held) else ""]
        lines.append(line)
    print_table(title, columns, lines, markdown=markdown)


def as_json(by_threads: Mapping[int, Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every measurement as plain values."""
    return {
        str(threads): {name: [asdict(m) for m in rounds] for name, rounds in runs.items()}
        for threads, runs in by_threads.items()
    }
