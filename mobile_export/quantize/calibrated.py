"""Walk a model block by block and quantize every matrix for the inputs it gets: weights + texts -> codes and scales.

Two streams of activations go through the blocks side by side: the exact one, through float32 blocks, and the found one,
through blocks that are quantized already, inputs rounded to int8 as the recipe rounds them at run time. Of all real matrices
W + W D H^-1 comes closest on the found inputs x to what W gives on the exact ones, where H = sum of x x^T and D = sum of
(exact x - x) x^T (GPTAQ, arXiv:2504.02692). GPTQ rounds the matrix half way to it: all the way would fit it to the noise of
this text as well (QEP, arXiv:2504.09629). Matrices of a block that share an input are quantized together, and what follows
them sees the result.

Before a block is quantized it is folded (fold.py) where that pays, by what its matrices are given in float32.

A block that runs several times gathers its sums over all of its executions, and is quantized once. Where one execution
follows the other (immediate sharing), its inputs come from the block itself, still in float32, on the found stream. Where
others lie between (repeat-all-over, reverse) these are not quantized yet, so the inputs come from the exact stream, run
through the whole schedule beforehand: that costs one pass more, where running on from every block would cost a pass a block.

In memory at a time: one block in float32 and its inputs at every matrix, and both streams.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mobile_export.errors import InputError
from mobile_export.quantize import pieces
from mobile_export.quantize.activations import quantize_dequantize_rows
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.executions import Executions, Stream, side_by_side
from mobile_export.quantize.fold import Factor, fold
from mobile_export.quantize.gptq import damped, gptq
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.quantize.weights import ModelWeights

Stages = tuple[tuple[str, ...], ...]  # a block's matrices, those of one input together, in the order they are reached
Matrices = dict[str, QuantizedWeight]
Seen = dict[str, Stream]  # first matrix of a stage -> its input in every text, [T, in_features]

PROPAGATION = 0.5  # of the change that would make good all that came before, on this text
TEXTS = 8  # whose sums are taken at a time


def calibrate(
    weights: ModelWeights, texts: Sequence[torch.Tensor], say: Callable[[str], None]
) -> tuple[Matrices, dict[str, Factor]]:
    """Codes and scales of every matrix in the blocks that the recipe quantizes, and what folds all weights of the blocks.

    The matrices are those of the folded model: the other weights are to be multiplied with their factors.

    Args:
        texts: tokens, int64 [T] each.
    Raises:
        InputError: a matrix's inputs are beyond float32.
    """
    with side_by_side() as pool:
        executions = _Executions(weights, max(len(text) for text in texts), pool)
        walk = _Walk(weights, executions, say)
        walk.through(texts)
    return walk.found, walk.factors


@dataclass(frozen=True)
class Moments:
    """Sums over a stage's inputs: hessian of x x^T, shift of (exact x - x) x^T; float32 (in_features, in_features)."""

    hessian: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(cls, found: torch.Tensor, exact: torch.Tensor) -> Moments:
        """Of inputs [T, in_features] on both streams."""
        return cls(found.t() @ found, (exact - found).t() @ found)

    def divided(self, columns: torch.Tensor) -> Moments:
        """Of the same inputs, each divided."""
        both = columns[:, None] * columns
        return Moments(self.hessian / both, self.shift / both)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.hessian + other.hessian, self.shift + other.shift)


def fitted(weight: torch.Tensor, hessian: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """What GPTQ rounds: `weight` moved towards giving on the found inputs what it gives on the exact ones, float32.

    Args:
        hessian: damped. shift: sum of (exact x - x) x^T, float32.
    """
    change = torch.linalg.solve(hessian, (weight.double() @ shift.double()).t()).t()
    return weight + PROPAGATION * change.float()


class _Walk:
    """One calibration: what it reads, and what it has found so far."""

    def __init__(self, weights: ModelWeights, executions: _Executions, say: Callable[[str], None]) -> None:
        self.weights, self.schedule, self.executions, self.say = weights, weights.plan.schedule, executions, say
        self.rounded = quantize_dequantize_rows if weights.recipe.activations == "int8" else _unrounded
        self.found: Matrices = {}
        self.factors: dict[str, Factor] = {}
        self.folded = weights.folded_by(self.factors)  # it sees each block's as they are found
        self.ahead: dict[int, dict[str, Moments]] = {}  # stored block -> stage -> sums of executions looked ahead to

    def through(self, texts: Sequence[torch.Tensor]) -> None:
        """Quantize every block in the order of its first execution."""
        tables = pieces.float_tables(self.weights)
        exact = self.executions.embedded(texts, tables(EMBEDDING))
        self._look_ahead(exact)
        table = self.weights.matrices[EMBEDDING]
        found = exact if table.precision.bits == 32 else self.executions.embedded(texts, _rounded_table(self.weights))
        settled: set[int] = set()
        for slot, stored in enumerate(self.schedule):
            block = pieces.stored_block(self.weights, stored, pieces.float_linears(self.weights))
            if stored in settled:
                exact = self.executions.run(block, slot, exact)
            else:
                settled.add(stored)
                self.say(f"calibrating block {len(settled)} of {len(self.weights.plan.blocks)}")
                exact = self._settle(slot, block, exact, found)
            found = self.executions.run(pieces.stored_block(self.folded, stored, self._linear), slot, found)

    def _settle(self, slot: int, block: nn.Module, exact: Stream, found: Stream) -> Stream:
        """Quantize every stage of a block that is about to run for the first time; gives the exact stream after it."""
        stored, run = self.schedule[slot], self.executions.run
        stages = _stages(self.executions, block, slot, found[:1])
        at_once = [slot]  # this execution and those that follow without another block between
        while at_once[-1] + 1 < len(self.schedule) and self.schedule[at_once[-1] + 1] == stored:
            at_once.append(at_once[-1] + 1)
        wanted, so_far, streams = [], found, []
        after: Stream = []
        for at in at_once:
            seen, exact = self.executions.heard(block, at, exact, [stage[0] for stage in stages])
            after = after or exact
            wanted.append(seen)
            streams.append(so_far)
            so_far = run(block, at, so_far) if at < at_once[-1] else so_far
        self._fold(stored, stages, wanted)
        settling = pieces.stored_block(self.folded, stored, self._linear)
        for stage in stages:
            names = {part: f"blocks.{stored}.{part}.weight" for part in stage}
            matrices = {part: name for part, name in names.items() if self.weights.matrices[name].precision.bits < 32}
            if not matrices:
                continue
            columns = self._columns(names[stage[0]])
            moments = self.ahead.get(stored, {}).pop(stage[0], None)
            moments = moments and moments.divided(columns)
            for at, stream, exact_inputs in zip(at_once, streams, wanted, strict=True):
                inputs = self.executions.reaching(settling, at, stream, stage[0])
                found_here = self._moments(inputs, [x / columns for x in exact_inputs.pop(stage[0])])
                moments = moments + found_here if moments else found_here
            assert moments is not None
            self._check_finite(next(iter(matrices.values())), moments)
            hessian = damped(moments.hessian, columns)
            for part, name in matrices.items():
                target = fitted(self.folded.float32(name), hessian, moments.shift)
                self.found[name] = gptq(target, hessian, self.weights.matrices[name].precision)
                bias = cast("torch.Tensor | None", settling.get_submodule(part).bias)
                settling.set_submodule(part, self._linear(name, bias))
        return after

    def _look_ahead(self, stream: Stream) -> None:
        """Gather the sums of executions that come again after others, on the exact stream."""
        schedule = self.schedule
        again = [at for at, stored in enumerate(schedule) if stored in schedule[:at] and not _follows(schedule, at)]
        for slot in range(max(again, default=-1) + 1):
            block = pieces.stored_block(self.weights, schedule[slot], pieces.float_linears(self.weights))
            if slot not in again:
                stream = self.executions.run(block, slot, stream)
                continue
            stages = _stages(self.executions, block, slot, stream[:1])
            seen, stream = self.executions.heard(block, slot, stream, [stage[0] for stage in stages])
            sums = self.ahead.setdefault(schedule[slot], {})
            for part, inputs in seen.items():
                moments = self._moments(inputs, inputs)
                sums[part] = sums[part] + moments if part in sums else moments

    def _moments(self, found: Stream, exact: Stream) -> Moments:
        """Of the inputs of all texts, [T, in_features] each, a few texts at a time."""

        def of(at: int) -> Moments:
            return Moments.of(self.rounded(torch.cat(found[at : at + TEXTS])), torch.cat(exact[at : at + TEXTS]))

        return functools.reduce(operator.add, self.executions.pool.map(of, range(0, len(found), TEXTS)))

    def _linear(self, name: str, bias: torch.Tensor | None) -> nn.Module:
        """A matrix as far as it is settled: its codes on rounded inputs, or still float32."""
        if name in self.found:
            return _SettledLinear(self.found[name].dequantized(), bias, self.rounded)
        return pieces.float_linears(self.folded)(name, bias)

    def _fold(self, stored: int, stages: Stages, heard: Sequence[Seen]) -> None:
        """Find a block's factors from what its matrices are given in float32."""
        mean_squares: dict[str, torch.Tensor] = {}
        for stage in stages:
            inputs = [x for seen in heard for x in seen[stage[0]]]
            mean = functools.reduce(operator.add, (x.square().sum(dim=0) for x in inputs)) / sum(map(len, inputs))
            mean_squares |= {f"blocks.{stored}.{part}.weight": mean for part in stage}
        self.factors |= fold(self.weights, stored, mean_squares)

    def _columns(self, name: str) -> torch.Tensor:
        """What the inputs of a matrix are divided by now that it is folded, (in_features,)."""
        columns = self.factors.get(name, Factor()).columns
        return torch.ones(self.weights.shape(name)[1]) if columns is None else columns

    def _check_finite(self, name: str, moments: Moments) -> None:
        if not (moments.hessian.isfinite().all() and moments.shift.isfinite().all()):
            what = "its inputs go beyond float32 on the calibration text"
            raise InputError(self.weights.where(name), what, "use a recipe without calibration, such as w4-fast")


class _SettledLinear(nn.Module):
    """y = W round(x) + b, W of codes and scales."""

    bias: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, rounded: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.weight, self.rounded = weight, rounded
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.rounded(x), self.weight, self.bias)


class _Executions(Executions):
    """Executions that are listened to, and started from tokens."""

    def embedded(self, texts: Sequence[torch.Tensor], table: nn.Module) -> Stream:
        """The residual stream before the first block."""
        entrance = self.entrance(pieces.float_linears(self.weights), pieces.float_tables(self.weights))
        return [entrance(table(text[None])) for text in texts]

    def heard(self, block: nn.Module, slot: int, stream: Stream, names: Sequence[str]) -> tuple[Seen, Stream]:
        """What the named modules are given on the way, [T, in_features] for every text, and the stream after."""

        def one(x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            worker.heard = {}
            return through(x), worker.heard

        worker, through = threading.local(), self.through(block, slot)
        with _listening(block, names, lambda name, x: worker.heard.__setitem__(name, x.flatten(0, -2))):
            after = list(self.pool.map(one, stream))
        return {name: [heard[name] for _, heard in after] for name in names}, [x for x, _ in after]

    def reaching(self, block: nn.Module, slot: int, stream: Stream, name: str) -> Stream:
        """What one module is given, [T, in_features] for every text; what comes after it is not run."""

        def stop(_: str, x: torch.Tensor) -> None:
            raise _Reached(x.flatten(0, -2))

        def one(x: torch.Tensor) -> torch.Tensor:
            try:
                through(x)
            except _Reached as reached:
                return reached.given
            raise AssertionError(f"{name} is not called")

        through = self.through(block, slot)
        with _listening(block, [name], stop):
            return list(self.pool.map(one, stream))


class _Reached(Exception):
    """The module whose input was wanted has been called with it."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given = given


def _stages(executions: _Executions, block: nn.Module, slot: int, stream: Stream) -> Stages:
    """A block's Linears in the order they are called, those that are handed the same tensor together."""
    calls: list[tuple[str, torch.Tensor]] = []
    with _listening(block, _linears_of(block), lambda name, x: calls.append((name, x))):
        executions.run(block, slot, stream)
    stages: list[list[str]] = []
    given: torch.Tensor | None = None
    for name, x in calls:
        if x is given:
            stages[-1].append(name)
        else:
            stages.append([name])
        given = x
    return tuple(tuple(stage) for stage in stages)


class _listening:
    """While entered, `hear` is told the name and the input of each named module that is called."""

    def __init__(self, block: nn.Module, names: Sequence[str], hear: Callable[[str, torch.Tensor], None]) -> None:
        self.block, self.names, self.hear = block, names, hear

    def __enter__(self) -> None:
        self.hooks = [
            self.block.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: self.hear(name, given[0]))
            for name in self.names
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def _linears_of(block: nn.Module) -> list[str]:
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _follows(schedule: Sequence[int], slot: int) -> bool:
    """Whether an execution follows, without another block between, on the first one of its block."""
    first = schedule.index(schedule[slot])
    return all(stored == schedule[slot] for stored in schedule[first:slot])


def _rounded_table(weights: ModelWeights) -> nn.Module:
    return nn.Embedding.from_pretrained(weights.quantized(EMBEDDING).dequantized())


def _unrounded(x: torch.Tensor) -> torch.Tensor:
    return x
