"""The first five steps in a row, as several verbs need them: a checkpoint's name -> weights that can be asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mobile_export.checkpoint import open_checkpoint
from mobile_export.cli.say import say
from mobile_export.families import recognise, settle
from mobile_export.quantize.recipe import KvCache, read_recipe
from mobile_export.quantize.weights import ModelWeights
from mobile_export.sharing import plan_sharing


def prepare(
    checkpoint: str, recipe: str, schedule: str | None, kv: str | None = None, calibration: Path | None = None
) -> ModelWeights:
    """Read, recognise, plan, and assign precisions; no weight is quantized yet.

    Raises:
        InputError, UsageError, MissingTool: as the steps say.
    """
    chosen = read_recipe(recipe)
    if kv is not None:
        chosen = dataclasses.replace(chosen, kv=KvCache(kv))  # type: ignore[arg-type]
    opened = settle(open_checkpoint(checkpoint))
    recognised = recognise(opened)
    return ModelWeights(opened, recognised, plan_sharing(opened, recognised, schedule), chosen, calibration, say)
