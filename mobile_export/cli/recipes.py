"""`mobile-export recipes`: the recipes that come with the tool."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import typer

from mobile_export.cli.options import JsonOption
from mobile_export.cli.say import table

if TYPE_CHECKING:
    from mobile_export.quantize.recipe import Precision, Recipe


def recipes(as_json: JsonOption = False) -> int:
    """List the packaged recipes and what each does to which weights.

    Example: mobile-export recipes
    """
    from mobile_export.quantize.recipe import packaged_recipes, read_recipe

    found = [read_recipe(name) for name in packaged_recipes()]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(recipe) for recipe in found]))
        return 0
    rows = [
        (r.name, *(_stored(r, part) for part in (r.linear, r.embedding, r.head)), r.quantizer, r.activations, r.kv.dtype)
        for r in found
    ]
    typer.echo(table(("recipe", "blocks", "embedding", "head if untied", "quantizer", "activations", "kv cache"), rows, left=7))
    return 0


def _stored(recipe: Recipe, precision: Precision) -> str:
    return f"its own, or {precision.bits}-bit" if recipe.own_codes else str(precision)
