"""Arguments and options that several verbs take, spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face folder, a .gguf or .pt file, or smollm2-135m.")
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A recipe's name (see `recipes`), or a TOML file.")]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="Order the stored blocks run in: none, immediate, repeat-all-over, reverse, or numbers such as 0,0,1,1. "
        "Default: what the checkpoint itself says.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
