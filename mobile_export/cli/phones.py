"""`mobile-export phones`: the phones `check` knows, and how well each value is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobile_export.cli.options import JsonOption
from mobile_export.cli.say import table

if TYPE_CHECKING:
    from mobile_export.budget.phones import Phone, Value

PhonesFileOption = Annotated[
    list[Path] | None,
    typer.Option("--phones-file", metavar="FILE", help="TOML with more phones, or other values.", show_default=False),
]
MARKS = {"high": "", "medium": "~", "low": "?"}


def phones(
    name: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Only these, with the source of every value.", show_default=False),
    ] = None,
    phones_file: PhonesFileOption = None,
    as_json: JsonOption = False,
) -> int:
    """List phones with DRAM, memory bandwidth, caches and cores; with names, where each value comes from.

    A value without a mark is the maker's or measured, ~ is from press and databases, ? is derived, leaked or a guess.

    Example: mobile-export phones "Pixel 8"
    """
    from mobile_export.budget.phones import find_phones, read_phones

    known = read_phones(phones_file or ())
    chosen = find_phones(name, known, "") if name else list(known.values())
    if as_json:
        typer.echo(json.dumps([_plain(phone) for phone in chosen]))
        return 0
    typer.echo(table(HEADER, [_row(phone) for phone in chosen], left=3))
    for phone in chosen if name else ():
        typer.echo(f"\n{phone.name}")
        for what, value in phone.values.items():
            typer.echo(f"{what}: {_value(value)}, {value.confidence} confidence, {phone.sources[value.source]}")
    return 0


HEADER = ("phone", "soc", "memory", "year", "DRAM GB", "GB/s", "cache MiB", "big cores", "app limit MiB")


def _row(phone: Phone) -> tuple[str, ...]:
    row, chip = phone.row, phone.chip
    shown = (row.dram_gib, chip.bandwidth_gb_s, chip.cache_mib, chip.big_cores, row.app_limit_mib)
    return (row.name, row.soc, chip.memory, str(row.year), *(_marked(value) for value in shown))


def _marked(value: Value | None) -> str:
    return f"{_value(value)}{MARKS[value.confidence]}" if value else "-"


def _value(value: Value) -> str:
    return f"{value.value:g}" if value.value is not None else f"{value.low:g} to {value.high:g}"


def _plain(phone: Phone) -> dict[str, Any]:
    return {
        **phone.row.model_dump(include={"name", "year", "os", "soc"}),
        "memory": phone.chip.memory,
        "values": {
            what: {**value.model_dump(exclude_none=True), "page": phone.sources[value.source]}
            for what, value in phone.values.items()
        },
    }
