"""Every weight of the graph at its recipe's precision, read and quantized when asked for.

The one place numbers are made: all three emitters and the verification ask here, so they hold the same codes and scales.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.checkpoint.read import read_float32
from mobile_export.errors import InputError, UsageError
from mobile_export.families.spec import Recognised, WeightSource
from mobile_export.quantize.clip_search import QuantizedWeight, quantize_weight
from mobile_export.quantize.matrix_plan import MatrixPlan, uses
from mobile_export.quantize.recipe import EMBEDDING, HEAD, Recipe, read_recipe
from mobile_export.quantize.trained import check_kept, trained_codes, trained_precisions, with_own_codes
from mobile_export.sharing import SharingPlan

if TYPE_CHECKING:
    from mobile_export.quantize.calibration import Calibrated
    from mobile_export.quantize.fold import Factor

PARTS = ("embedding", "head", "blocks", "norms")


class ModelWeights:
    """The weights of a checkpoint under a sharing plan and a recipe; nothing is read until asked for.

    Names are the graph's, with stored blocks numbered as in the plan: "blocks.3.ffn.down.weight".
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recognised: Recognised,
        plan: SharingPlan,
        recipe: Recipe,
        calibration_text: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Decide every matrix's precision.

        Args:
            calibration_text: for a calibrated recipe; None: sampled from the model.
            say: told how far calibration is, when the first number is asked for.
        Raises:
            InputError: a group size that does not divide a matrix, an override that names no matrix, or a precision other
                than the one a matrix was trained to be rounded at.
            UsageError: a calibration text for a recipe that is not calibrated.
        """
        if calibration_text is not None and recipe.quantizer == "clip":
            what = f"recipe {recipe.name} is not calibrated"
            raise UsageError(f"--calibration {calibration_text}", what, "leave it out, or choose a recipe that is")
        self.calibration_text, self.say = calibration_text, say
        self.factors: Mapping[str, Factor] = {}
        self.sources = _sources(recognised, plan)
        self.trained = trained_precisions(checkpoint.tensors, self.sources)
        recipe = with_own_codes(recipe, self.trained, _matrices(self.sources))
        self.checkpoint, self.recognised, self.plan, self.recipe = checkpoint, recognised, plan, recipe
        self.matrices = {m.name: m for m in _assign(self.sources, plan, recipe)}
        for matrix in self.matrices.values():
            _check_divides(self.where(matrix.name), matrix)
            check_kept(self.where(matrix.name), matrix, self.trained.get(matrix.name), recipe)

    def where(self, name: str) -> str:
        """ "file: tensor" of a weight's first tensor, for error lines."""
        return self.checkpoint.tensors[self.sources[name].tensors[0]].where

    def float32(self, name: str) -> torch.Tensor:
        """A weight as float32, its parts taken out of the file's tensors and stacked along the rows; folded, if calibrated.

        Raises:
            InputError: a value that is not finite, or a tensor that is not floating.
        """
        parts = [take.of(read_float32(self.checkpoint.tensors[tensor])) for tensor, take in self.sources[name].parts()]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        factor = self._factors.get(name)
        return value if factor is None else factor.of(value)

    def unfold(self) -> torch.Tensor | None:
        """What rows looked up in the token table are multiplied with, float32 (columns,): a tied table is folded for the head.

        None where it is not.
        """
        factor = self._factors.get(EMBEDDING)
        return None if factor is None or factor.columns is None else 1 / factor.columns

    @property
    def _factors(self) -> Mapping[str, Factor]:
        return self.calibrated.factors if self.calibrated else self.factors

    @cached_property
    def calibrated(self) -> Calibrated | None:
        """What calibration makes of the model: minutes of work, or read from the cache. None where the recipe has none.

        Raises:
            InputError: as calibration.py says.
        """
        if self.recipe.quantizer == "clip":
            return None
        from mobile_export.quantize.calibration import calibrated

        return calibrated(self, self.calibration_text, self.say)

    def uncalibrated(self, say: Callable[[str], None]) -> ModelWeights:
        """The same weights, each matrix quantized by itself."""
        recipe = replace(self.recipe, quantizer="clip", calibration=None)
        return ModelWeights(self.checkpoint, self.recognised, self.plan, recipe, say=say)

    def in_float32(self) -> ModelWeights:
        """The same weights, none of them quantized."""
        return ModelWeights(self.checkpoint, self.recognised, self.plan, read_recipe("fp32"))

    def folded_by(self, factors: Mapping[str, Factor]) -> ModelWeights:
        """The same weights, each multiplied with its factor: with what the mapping holds when a weight is asked for."""
        folded = self.uncalibrated(self.say)
        folded.factors = factors
        return folded

    def quantized(self, name: str) -> QuantizedWeight:
        """A matrix's codes and scales; the same on every call. Those it was trained to have, where it was trained so.

        Raises:
            InputError: a value that is not finite; as calibration.py says.
        """
        if name in self.trained:
            return trained_codes(self.checkpoint.tensors, self.sources[name], self.matrices[name].precision)
        if self.calibrated and name in self.calibrated.matrices:
            return self.calibrated.matrices[name]
        return quantize_weight(self.float32(name), self.matrices[name].precision)

    def source_of(self, place: str) -> str:
        """The weight a place in the graph reads: a tied head reads the table, every other place its own."""
        return EMBEDDING if place == HEAD and self.plan.tied else place

    def part_of(self, name: str) -> str:
        """The part of the model a weight is billed to.

        "embedding", "head", "blocks", "positions" for a learned table of them, or "norms" (biases and kernels too).
        """
        if name not in self.matrices:
            return "norms"
        kind = name.partition(".")[0]
        return kind if kind in ("embedding", "head", "positions") else "blocks"

    def predicted_bytes(self) -> dict[str, int]:
        """Part -> bytes of its weights in a .pte, every stored weight once.

        Says nothing of the graph, nor of positions where they are no weights but rotary tables.
        """
        parts = dict.fromkeys(PARTS, 0)
        for name in self.stored():
            matrix = self.matrices.get(name)
            size = matrix.code_bytes + matrix.scale_bytes if matrix else 4 * math.prod(self.shape(name))
            parts[self.part_of(name)] = parts.get(self.part_of(name), 0) + size
        return parts

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape in the graph."""
        return self.sources[name].shape

    def stored(self) -> tuple[str, ...]:
        """The weights' names, one for each that is stored: Phi's one norm serves two places of a block."""
        first = {source: name for name, source in reversed(self.sources.items())}
        return tuple(name for name, source in self.sources.items() if first[source] == name)

    def executions_of(self, name: str) -> int:
        """How many places of the graph use a weight."""
        return uses(name, self.plan.schedule, tied=self.plan.tied)


def _sources(recognised: Recognised, plan: SharingPlan) -> dict[str, WeightSource]:
    """The weights the graph has under a plan: stored blocks renumbered, no head where it is tied."""
    number = {file_block: stored for stored, file_block in enumerate(plan.blocks)}
    sources = {}
    for name, source in recognised.weights.items():
        kind, _, rest = name.partition(".")
        if kind == "blocks":
            block, _, rest = rest.partition(".")
            if int(block) in number:
                sources[f"blocks.{number[int(block)]}.{rest}"] = source
        elif name != HEAD or not plan.tied:
            sources[name] = source
    return sources


def _matrices(sources: Mapping[str, WeightSource]) -> list[str]:
    return [name for name, source in sources.items() if len(source.shape) == 2]


def _assign(sources: Mapping[str, WeightSource], plan: SharingPlan, recipe: Recipe) -> list[MatrixPlan]:
    shapes = {name: sources[name].shape for name in _matrices(sources)}
    for glob in (glob for override in recipe.override for glob in override.globs()):
        if not any(fnmatch.fnmatchcase(name, glob) for name in shapes):
            what = f"override {glob!r} names no matrix"
            raise InputError(f"recipe {recipe.name}", what, "`inspect` lists their names")
    return [
        MatrixPlan(name, (rows, columns), recipe.precision_of(name), uses(name, plan.schedule, tied=plan.tied))
        for name, (rows, columns) in shapes.items()
    ]


def _check_divides(where: str, matrix: MatrixPlan) -> None:
    group, columns = matrix.precision.group_size, matrix.shape[1]
    if group and columns % group:
        fits = math.gcd(columns, group)
        then = f"use group_size {fits}" if fits % 32 == 0 else f"give {matrix.name} 8 bits by an [[override]]"
        raise InputError(where, f"{columns} inputs do not divide into groups of {group}", then)
