"""How a benchmark reports: tables on stdout, figures held against their limits, one JSON file, an exit code."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mobile_export.errors import EXIT_NO, EXIT_YES


@dataclass(frozen=True)
class Figure:
    """A measured value and the limit it is held to, from above or, `at_least`, from below."""

    name: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def at_most(name: str, measured: float, limit: float, unit: str = "x") -> Figure:
    """A figure that more would miss; the unit "x" is for ratios."""
    return Figure(name, measured, limit, unit)


def at_least(name: str, measured: float, limit: float, unit: str = "x") -> Figure:
    """A figure that less would miss."""
    return Figure(name, measured, limit, unit, at_least=True)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median with the least and the largest value; the median alone where all are equal.

    >>> spread([3.0, 1.0, 2.0]), spread([88.848896] * 3, 2)
    ('2.0 (1.0 to 3.0)', '88.85')
    """
    median = f"{statistics.median(values):,.{digits}f}"
    if min(values) == max(values):
        return median
    return f"{median} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios round by round: a slow moment of the machine hits both values of a round and cancels.

    >>> paired_ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.0])
    2.0
    """
    return statistics.median(paired_ratios(values, base))


def paired_ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """The ratios round by round."""
    return [value / of for value, of in zip(values, base, strict=True)]


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile.

    >>> middle_half([5.0, 1.0, 2.0, 3.0, 4.0])
    (2.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, method="inclusive")
    return first, third


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool) -> None:
    """One table, aligned for a terminal or as Markdown for docs/. The first column is left-aligned, the rest right."""
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD, pad_edge=markdown)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=1_000, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    print("\n".join(("", title, "", *filter(None, lines))))


def print_figures(figures: Sequence[Figure], *, markdown: bool) -> None:
    """Each figure with its limit and whether it is met."""
    rows = [
        (
            figure.name,
            f"{_plain(figure.measured)} {figure.unit}",
            f"{'at least' if figure.at_least else 'at most'} {_plain(figure.limit)} {figure.unit}",
            "yes" if figure.met else "NO",
        )
        for figure in figures
    ]
    print_table("Figures to reach", ("figure", "measured", "limit", "met"), rows, markdown=markdown)


def _plain(value: float) -> str:
    """Enough digits to tell a value from its limit: 1.005, 89.50, 1,300."""
    return f"{value:,.{3 if abs(value) < 10 else 2 if abs(value) < 1_000 else 0}f}"


def add_report_options(parser: argparse.ArgumentParser, *, runs: int | None = None) -> None:
    """The options every benchmark takes; `--runs` where `runs` gives its default."""
    if runs is not None:
        parser.add_argument("--runs", type=int, default=runs, help=f"rounds; medians are reported (default {runs})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement here")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown, for docs/")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a figure is missed")


def finish(asked: argparse.Namespace, machine: str, measured: Any, figures: Sequence[Figure]) -> int:
    """Print the figures, write the JSON file where one was asked for, and give the exit code."""
    print_figures(figures, markdown=asked.markdown)
    if asked.json:
        held = [{**asdict(figure), "met": figure.met} for figure in figures]
        asked.json.write_text(json.dumps({"machine": machine, "measured": measured, "figures": held}, indent=1))
    return EXIT_NO if asked.strict and not all(figure.met for figure in figures) else EXIT_YES
