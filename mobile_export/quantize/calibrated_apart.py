"""Every matrix of blocks and head at 4 bits by GPTQ, as if it alone were quantized: for the inputs it gets in float32.

Beside calibrated.py, which quantizes a model as a whole and makes good in each matrix what was lost before it, this says what a
matrix costs by itself. Blocks are folded alike. In memory at a time: one block and the second moments of its inputs; those of
every block that is still to run again, where shared blocks do not follow at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor

import torch
from torch import nn

from mobile_export.errors import InputError
from mobile_export.model.products import linear
from mobile_export.quantize import pieces
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.executions import Executions
from mobile_export.quantize.fold import Channels, Factor, channels_of, fold, of_head, one_in
from mobile_export.quantize.gptq import Inputs, damped, gptq
from mobile_export.quantize.mixed import FOUR, mixed_recipe
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.quantize.staged import linears_of, listening
from mobile_export.quantize.weights import ModelWeights


def calibrate_apart(
    weights: ModelWeights, asked: Sequence[str], texts: Sequence[torch.Tensor], pool: Executor, say: Callable[[str], None]
) -> tuple[dict[str, QuantizedWeight], dict[str, Factor]]:
    """Codes and scales of those of the asked matrices that the blocks or the head multiply with, and what folds the blocks.

    Args:
        weights: under a recipe that is not calibrated.
        texts: tokens, int64 [T] each.
    Raises:
        InputError: a matrix's inputs are beyond float32.
    """
    recipe = mixed_recipe("4-bit", "what is asked for at 4 bits", weights.matrices, frozenset(asked))
    at_4_bits = ModelWeights(weights.checkpoint, weights.recognised, weights.plan, recipe)  # what folding has to pay for
    executions = Executions(weights, max(map(len, texts)), pool)
    linears, tables = pieces.float_linears(weights), pieces.float_tables(weights)
    entrance, table = executions.entrance(linears, tables), tables(EMBEDDING)
    stream = [entrance(table(text[None])) for text in texts]
    found: dict[str, QuantizedWeight] = {}
    factors: dict[str, Factor] = {}
    folded = weights.folded_by(factors)  # it sees each block's as they are found
    to_run = Counter(weights.plan.schedule)
    heard: dict[int, dict[str, _Inputs]] = {}  # stored block -> matrix

    def settle(foldable: Iterable[Channels], inputs: Mapping[str, _Inputs]) -> None:
        _check_finite(weights, inputs)
        some = {name: torch.cat(given.some) for name, given in inputs.items()}
        factors.update(fold(at_4_bits, foldable, some, each=pool.map))
        named = {name: given.moments for name, given in inputs.items() if name in asked}
        found.update(zip(named, pool.map(rounded, named, named.values()), strict=True))

    def rounded(name: str, sums: torch.Tensor) -> QuantizedWeight:
        columns = factors.get(name, Factor()).columns
        columns = torch.ones(len(sums)) if columns is None else columns
        return gptq(folded.float32(name), Inputs.of(damped(sums / columns / columns[:, None], columns)), FOUR)

    for slot, stored in enumerate(weights.plan.schedule):
        say(f"calibrating block {stored + 1} of {len(weights.plan.blocks)} by itself")
        block = pieces.stored_block(weights, stored, linears)
        inputs = heard.setdefault(stored, {})
        with _hearing(block, f"blocks.{stored}.", inputs, one_in(texts)):
            stream = [executions.through(block, slot)(x) for x in stream]
        to_run[stored] -= 1
        if not to_run[stored]:
            settle(channels_of(weights, stored), heard.pop(stored))
    head, at_places = pieces.head(weights, linears), dict[str, _Inputs]()
    with _hearing(head, "head.", at_places, one_in(texts)):
        for x in stream:
            head(x)
    settle(of_head(weights), {weights.source_of(place): inputs for place, inputs in at_places.items()})
    return found, factors


class _Inputs:
    """What a matrix was given.

    moments: the sum of x x^T over inputs x of all texts. some: those of one text in `every`, [T, in_features] each.
    """

    def __init__(self, columns: int, every: int) -> None:
        self.moments, self.some = torch.zeros(columns, columns), list[torch.Tensor]()
        self._texts, self._every = 0, every

    def add(self, x: torch.Tensor) -> None:
        """x: of one text, [T, in_features]."""
        columns = x.t().contiguous()
        self.moments += linear(columns, columns)
        if self._texts % self._every == 0:
            self.some.append(x)
        self._texts += 1


def _check_finite(weights: ModelWeights, inputs: Mapping[str, _Inputs]) -> None:
    for name, given in inputs.items():
        if not given.moments.isfinite().all():
            what = "its inputs go beyond float32 on the calibration text"
            raise InputError(weights.where(name), what, "add --quantizer clip")


def _hearing(block: nn.Module, prefix: str, inputs: dict[str, _Inputs], every: int) -> listening:
    """While entered, what a block's matrices are given is added to `inputs`, by weight; whole of one text in `every`."""

    def hear(part: str, given: torch.Tensor) -> None:
        x = given.flatten(0, -2)
        inputs.setdefault(f"{prefix}{part}.weight", _Inputs(x.shape[1], every)).add(x)

    return listening(block, linears_of(block), hear)
