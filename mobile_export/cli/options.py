"""Arguments and options that several verbs take, spelled once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from mobile_export.errors import UsageError

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face folder, a .gguf or .pt file, or smollm2-135m.")
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="A recipe's name (see `recipes`), or a TOML file. w4 is calibrated, which takes minutes once; w4-fast is not.",
    ),
]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="Order the stored blocks run in: none, immediate, repeat-all-over, reverse, or numbers such as 0,0,1,1. "
        "Default: what the checkpoint itself says.",
        show_default=False,
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="UTF-8 text a calibrated recipe is calibrated with. Default: sampled from the model.",
        show_default=False,
    ),
]
AdbPathOption = Annotated[
    str | None,
    typer.Option("--adb-path", help="The adb program. Default: $ADB, the SDK's, PATH, adbutils'.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def with_optional_values(arguments: list[str], options: frozenset[str]) -> list[str]:
    """A command line in which options that may stand alone are given an empty value there: typer has no such options.

    >>> with_optional_values(["profile", "out", "--adb", "--ops"], frozenset({"--adb"}))
    ['profile', 'out', '--adb=', '--ops']
    >>> with_optional_values(["profile", "out", "--adb", "all"], frozenset({"--adb"}))
    ['profile', 'out', '--adb', 'all']
    """
    following = [*arguments, "-"][1:]
    alone = [each in options and after.startswith("-") for each, after in zip(arguments, following, strict=True)]
    return [f"{each}=" if bare else each for each, bare in zip(arguments, alone, strict=True)]


def percentage(option: str, text: str) -> float:
    """What an option was given, "3%" or "0.03", as 0.03.

    Raises:
        UsageError: neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not match:
        raise UsageError(f"{option} {text}", "is no percentage", "write it like 3% or 0.03")
    return float(match[1]) / (100 if match[2] else 1)
