"""Walk a model block by block and quantize every matrix for the inputs it gets: weights + texts -> codes and scales.

Two streams of activations go through the blocks side by side: the exact one, through float32 blocks, and the found one,
through blocks that are quantized already, inputs rounded to int8 as the recipe rounds them at run time. Of all real matrices
W + W D H^-1 comes closest on the found inputs x to what W gives on the exact ones, where H = sum of x x^T and D = sum of
(exact x - x) x^T (GPTAQ, arXiv:2504.02692). GPTQ rounds the matrix half way to it: all the way would fit it to the noise of
this text as well (QEP, arXiv:2504.09629). Those with more inputs than the stream is wide aim at their own output: D has more
entries then than the text can tell. Matrices of a block that share an input are quantized together, and what follows them
sees the result.

The head comes last, for what the quantized blocks give it. A table that is tied to it is rounded for the head: what it costs
there is ten times what it costs where rows are looked up (decision 0018), and the found stream begins with rows in float32.

Before a block or the head is quantized it is folded (fold.py) where that pays, by what its matrices are given in float32. Both
streams go through a block side by side, every text by itself, and all wait (paused.py) in front of what is being quantized.

A block that runs several times gathers its sums over all of its executions, and is quantized once. Where one execution
follows the other (immediate sharing), its inputs come from the block itself, still in float32, on the found stream. Where
others lie between (repeat-all-over, reverse) these are not quantized yet, so the inputs come from the exact stream, run
through the whole schedule beforehand: that costs one pass more, where running on from every block would cost a pass a block.

In memory at a time: one block in float32, both streams, and what each text holds where it waits.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mobile_export.errors import InputError
from mobile_export.model.products import linear
from mobile_export.quantize import pieces
from mobile_export.quantize.activations import quantize_dequantize_rows
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.executions import WORKERS, Executions, Stream, room_like, side_by_side
from mobile_export.quantize.fold import Channels, Factor, channels_of, fold, of_head, one_in
from mobile_export.quantize.gptq import Inputs, damped, gptq
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.quantize.staged import Places, listening, stages_of, waiting
from mobile_export.quantize.weights import ModelWeights

Matrices = dict[str, QuantizedWeight]
Heard = dict[str, Stream]  # first matrix of a stage -> its input in every text, [T, in_features]

PROPAGATION = 0.5  # of the change that would make good all that came before, on this text
TEXTS = 8  # whose sums are taken at a time
ROWS = 2048  # of a matrix rounded at a time
PART = 384  # columns of a product with itself worked out at a time


def calibrate(
    weights: ModelWeights, texts: Sequence[torch.Tensor], say: Callable[[str], None]
) -> tuple[Matrices, dict[str, Factor]]:
    """Codes and scales of all that blocks and head multiply with and the recipe quantizes, and what folds the blocks' weights.

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
    """Sums over a stage's inputs: hessian of x x^T, shift of (exact x - x) x^T; float32 (in_features, in_features).

    shift: None where the aim is the matrices' own output.
    """

    hessian: torch.Tensor
    shift: torch.Tensor | None

    @classmethod
    def of(cls, found: torch.Tensor, exact: torch.Tensor | None) -> Moments:
        """Of inputs [T, in_features] on both streams."""
        columns = found.t().contiguous()
        return cls(_gram(columns), None if exact is None else linear((exact - found).t(), columns))

    def divided(self, columns: torch.Tensor) -> Moments:
        """Of the same inputs, each divided."""
        both = columns[:, None] * columns
        return Moments(self.hessian / both, None if self.shift is None else self.shift / both)

    def __add__(self, other: Moments) -> Moments:
        shift = None if self.shift is None or other.shift is None else self.shift + other.shift
        return Moments(self.hessian + other.hessian, shift)


def _gram(columns: torch.Tensor) -> torch.Tensor:
    """The products of columns [columns, T] with each other; what lies above the diagonal is taken from below it."""
    parts = columns.split(PART)
    lower = [[linear(part, other) for other in parts[: at + 1]] for at, part in enumerate(parts)]
    rows = [[*row, *(lower[below][at].t() for below in range(at + 1, len(parts)))] for at, row in enumerate(lower)]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


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
        self.ahead: dict[str, Moments] = {}  # first matrix of a stage -> sums of executions looked ahead to

    def through(self, texts: Sequence[torch.Tensor]) -> None:
        """Quantize every block in the order of its first execution."""
        every = one_in(texts)
        tables = pieces.float_tables(self.weights)
        exact = self.executions.embedded(texts, tables(EMBEDDING))
        self._look_ahead(exact)
        table = self.weights.matrices[EMBEDDING]
        as_it_is = table.precision.bits == 32 or self.weights.plan.tied  # a tied one is not rounded yet
        found = exact if as_it_is else self.executions.embedded(texts, _rounded_table(self.weights))
        settled: set[int] = set()
        for slot, stored in enumerate(self.schedule):
            if stored not in settled:
                settled.add(stored)
                self.say(f"calibrating block {len(settled)} of {len(self.weights.plan.blocks)}")
                exact, found = self._settle(slot, exact, found, every)
                continue
            exact = self.executions.run(self._exact_block(stored), slot, exact)
            found = self.executions.run(pieces.stored_block(self.folded, stored, self._linear), slot, found)
        self._settle_head(exact[::every], found)

    def _settle(self, slot: int, exact: Stream, found: Stream, every: int) -> tuple[Stream, Stream]:
        """Quantize every stage of a block that is about to run for the first time; gives both streams after it.

        every: of how many texts one is folded by.
        """
        stored = self.schedule[slot]
        block = self._exact_block(stored)
        at_once = [slot]  # this execution and those that follow without another block between
        while at_once[-1] + 1 < len(self.schedule) and self.schedule[at_once[-1] + 1] == stored:
            at_once.append(at_once[-1] + 1)
        stages = stages_of(block, self.executions.through(block, slot), found[0])
        firsts = [stage[0] for stage in stages]
        before_exact, before = (self._before(block, at_once, stream) for stream in (exact, found))
        heard = self.executions.heard(block, at_once, [stream[::every] for stream in before_exact], firsts)[0]
        given = {_weight(stored, part): heard[stage[0]] for stage in stages for part in stage}
        self._fold(channels_of(self.weights, stored), given)
        aimed = [part for part in firsts if self._is_aimed(_weight(stored, part))]
        wanted, after_exact = self.executions.heard(block, at_once, before_exact, aimed)
        named = [[_weight(stored, part) for part in stage] for stage in stages]
        places = Places(stage[0] for stage in named)
        settling = pieces.stored_block(self.folded, stored, places.place)
        runs = [
            functools.partial(self.executions.through(settling, at), x)
            for at, xs in zip(at_once, before, strict=True)
            for x in xs
        ]
        with waiting(self.executions.pool, runs) as go_on:
            for stage, first in zip(named, firsts, strict=True):
                self._quantize(stage, go_on(), wanted.pop(first, None))
                self._settle_stage(stage, places)
            after = [room.copy_(x) for room, x in zip(room_like(found), go_on(), strict=False)]
        return after_exact, after

    def _settle_head(self, exact: Stream, found: Stream) -> None:
        """Quantize what the head multiplies with, for what reaches it. exact: of the texts it is folded by."""
        self._fold(of_head(self.weights), dict(self._reaching_head(self.weights, exact)))
        for name, inputs in self._reaching_head(self.folded, found):
            self._quantize([name], inputs, None)

    def _reaching_head(self, weights: ModelWeights, stream: Stream) -> Iterator[tuple[str, Stream]]:
        """Each of the head's matrices with its inputs, every text's [T, in_features]; the next one's are worked out with it."""
        *before, last = (name for stage in self._head_stages(stream[0][:, :1]) for name in stage)
        places = Places((*before, last))
        head = pieces.head(weights, places.place)
        with waiting(self.executions.pool, [functools.partial(head, x) for x in stream]) as go_on:
            for name in before:
                yield name, go_on()
                self._settle_stage([name], places)
            yield last, go_on()

    def _head_stages(self, x: torch.Tensor) -> list[list[str]]:
        head = pieces.head(self.weights, pieces.float_linears(self.weights))
        return [[self.weights.source_of(f"head.{part}.weight") for part in stage] for stage in stages_of(head, head, x)]

    def _exact_block(self, stored: int) -> nn.Module:
        return pieces.stored_block(self.weights, stored, pieces.float_linears(self.weights))

    def _before(self, block: nn.Module, slots: Sequence[int], stream: Stream) -> list[Stream]:
        """The streams before executions of a block that follow one another."""
        streams = [stream]
        for slot in slots[:-1]:
            streams.append(self.executions.run(block, slot, streams[-1]))
        return streams

    def _is_aimed(self, name: str) -> bool:
        """Whether a matrix aims at the exact stream's output: see the module."""
        return self.weights.shape(name)[1] <= self.weights.recognised.spec.hidden_size

    def _settle_stage(self, stage: Sequence[str], places: Places) -> None:
        for name in stage:
            places.settle(name, self._linear)

    def _quantize(self, stage: Sequence[str], found: Stream, exact: Stream | None) -> None:
        """Quantize matrices that share an input: [T, in_features] for every text and execution, on both streams."""
        names = [name for name in stage if self.weights.matrices[name].precision.bits < 32]
        if not names:
            return
        columns = self._columns(names[0])
        moments = self._moments(found, exact, columns)
        if names[0] in self.ahead:
            moments = self.ahead.pop(names[0]).divided(columns) + moments
        self._check_finite(names[0], moments)
        hessian = damped(moments.hessian, columns)
        inputs = Inputs.of(hessian)
        for name in names:
            weight, precision = self.folded.float32(name), self.weights.matrices[name].precision
            target = weight if moments.shift is None else fitted(weight, hessian, moments.shift)
            rows = min(ROWS, -(-len(target) // WORKERS))
            parts = self.executions.pool.map(lambda some, p=precision: gptq(some, inputs, p), target.split(rows))
            self.found[name] = _joined(list(parts))

    def _look_ahead(self, stream: Stream) -> None:
        """Gather the sums of executions that come again after others, on the exact stream."""
        schedule = self.schedule
        again = [at for at, stored in enumerate(schedule) if stored in schedule[:at] and not _follows(schedule, at)]
        for slot in range(max(again, default=-1) + 1):
            block = self._exact_block(schedule[slot])
            if slot not in again:
                stream = self.executions.run(block, slot, stream)
                continue
            stages = stages_of(block, self.executions.through(block, slot), stream[0])
            heard, stream = self.executions.heard(block, [slot], [stream], [stage[0] for stage in stages])
            for part, inputs in heard.items():
                name = _weight(schedule[slot], part)
                moments = self._moments(inputs, inputs if self._is_aimed(name) else None)
                self.ahead[name] = self.ahead[name] + moments if name in self.ahead else moments

    def _moments(self, found: Stream, exact: Stream | None, columns: torch.Tensor | None = None) -> Moments:
        """Of the inputs of all texts, [T, in_features] each, a few texts at a time; columns: what exact ones are divided by."""

        def of(at: int) -> Moments:
            wanted = None if exact is None else torch.cat(exact[at : at + TEXTS])
            wanted = wanted if wanted is None or columns is None else wanted / columns
            return Moments.of(self.rounded(torch.cat(found[at : at + TEXTS])), wanted)

        return functools.reduce(operator.add, self.executions.pool.map(of, range(0, len(found), TEXTS)))

    def _linear(self, name: str, bias: torch.Tensor | None) -> nn.Module:
        """A matrix as far as it is settled: its codes on rounded inputs, or still float32."""
        if name in self.found:
            return _SettledLinear(self.found[name].dequantized(), bias, self.rounded)
        return pieces.float_linears(self.folded)(name, bias)

    def _fold(self, foldable: Iterable[Channels], given: Mapping[str, Stream]) -> None:
        """Find a block's factors, or the head's, from what its matrices are given in float32."""
        inputs = {name: torch.cat(texts) for name, texts in given.items()}
        self.factors |= fold(self.weights, foldable, inputs, each=self.executions.pool.map)

    def _columns(self, name: str) -> torch.Tensor:
        """What the inputs of a matrix are divided by now that it is folded, (in_features,)."""
        columns = self.factors.get(name, Factor()).columns
        return torch.ones(self.weights.shape(name)[1]) if columns is None else columns

    def _check_finite(self, name: str, moments: Moments) -> None:
        if not all(sums.isfinite().all() for sums in (moments.hessian, moments.shift) if sums is not None):
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
        return linear(self.rounded(x), self.weight, self.bias)


class _Executions(Executions):
    """Executions that are listened to, and started from tokens."""

    def embedded(self, texts: Sequence[torch.Tensor], table: nn.Module) -> Stream:
        """The residual stream before the first block."""
        entrance = self.entrance(pieces.float_linears(self.weights), pieces.float_tables(self.weights))
        return [entrance(table(text[None])) for text in texts]

    def heard(
        self, block: nn.Module, slots: Sequence[int], streams: Sequence[Stream], names: Sequence[str]
    ) -> tuple[Heard, Stream]:
        """What modules are given in some executions, [T, in_features] for every text, and the stream after the first one."""

        def one(x: torch.Tensor, text: int, after: torch.Tensor) -> None:
            worker.text = text
            after.copy_(through(x))

        def hear(name: str, x: torch.Tensor) -> None:
            given[name][worker.text].copy_(x.flatten(0, -2))

        worker, heard, afters = threading.local(), Heard(), list[Stream]()
        for slot, stream in zip(slots, streams, strict=True):
            through = self.through(block, slot)
            afters.append(room_like(stream))
            given = {name: [room[0] for room in room_like(stream, _inputs_of(block, name))] for name in names}
            with listening(block, names, hear):
                list(self.pool.map(one, stream, range(len(stream)), afters[-1]))
            for name in names:
                heard[name] = heard.get(name, []) + given[name]
        return heard, afters[0]


def _inputs_of(block: nn.Module, name: str) -> int:
    return cast("nn.Linear", block.get_submodule(name)).in_features


def _weight(stored: int, part: str) -> str:
    """The name of a matrix of a stored block."""
    return f"blocks.{stored}.{part}.weight"


def _follows(schedule: Sequence[int], slot: int) -> bool:
    """Whether an execution follows, without another block between, on the first one of its block."""
    first = schedule.index(schedule[slot])
    return all(stored == schedule[slot] for stored in schedule[first:slot])


def _joined(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """A matrix of its rows."""
    codes, scales = torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
    return QuantizedWeight(codes, scales, parts[0].precision)


def _rounded_table(weights: ModelWeights) -> nn.Module:
    return nn.Embedding.from_pretrained(weights.quantized(EMBEDDING).dequantized())


def _unrounded(x: torch.Tensor) -> torch.Tensor:
    return x
