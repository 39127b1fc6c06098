"""What every matrix costs at 4 bits: how far the model's output moves when it alone goes there from 8 bits.

In:  weights under a recipe of 8 bits, texts.
Out: a Sensitivity for every matrix that may go to 4 bits: nats a token, and bytes saved.

Measured, not estimated: the model runs over the texts once for every matrix, from the matrix's first execution on, with what
comes before it kept. Activations are not rounded: that noise is the same at 4 and at 8 bits, and would drown the weak ones.
The matrix is rounded as the recipe will round it, since calibration helps some kinds ten times more than others.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import nn

from mobile_export.errors import InputError
from mobile_export.quantize import pieces
from mobile_export.quantize.calibrated_apart import calibrate_apart
from mobile_export.quantize.calibration import identity, kept_tensors
from mobile_export.quantize.clip_search import QuantizedWeight, quantize_weight
from mobile_export.quantize.executions import Executions, Stream, side_by_side
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.mixed import EIGHT, FOUR
from mobile_export.quantize.recipe import EMBEDDING, POSITIONS
from mobile_export.quantize.weights import ModelWeights

ALGORITHM = 4  # of measuring: a change makes worthless what was kept
FROM_TOKENS = -1  # in a slot's place: the token table and what follows it change


@dataclass(frozen=True)
class Sensitivity:
    """One matrix. kl: mean divergence over the texts' tokens, in nats, of all its executions together.

    saved_bytes: what the one stored copy weighs less at 4 bits than at 8.
    """

    name: str
    kl: float
    saved_bytes: int
    executions: int


def candidates(weights: ModelWeights) -> list[MatrixPlan]:
    """The matrices that may have 4 bits: all whose inputs divide into groups, but for learned positions."""
    stored = (weights.matrices[name] for name in weights.stored() if name in weights.matrices and name != POSITIONS)
    assert FOUR.group_size
    return [matrix for matrix in stored if matrix.shape[1] % FOUR.group_size == 0]


def saved_bytes(matrix: MatrixPlan) -> int:
    """What a matrix weighs less at 4 bits than at 8."""
    four, eight = (MatrixPlan(matrix.name, matrix.shape, precision, matrix.uses) for precision in (FOUR, EIGHT))
    return eight.code_bytes + eight.scale_bytes - four.code_bytes - four.scale_bytes


def sensitivities(
    weights: ModelWeights, texts: Sequence[torch.Tensor], calibration: Sequence[torch.Tensor], say: Callable[[str], None]
) -> tuple[Sensitivity, ...]:
    """Measure, or read what an earlier run kept.

    Args:
        weights: under a recipe of 8 bits, not calibrated.
        texts: what is measured on: tokens, int64 [T] each.
        calibration: what matrices are calibrated on, tokens likewise; none: they are rounded by the clipping search.
    Raises:
        InputError: a weight that cannot be read or is not finite, activations beyond float32, or a cache folder that cannot be
            written.
    """
    asked = candidates(weights)
    facts = (ALGORITHM, identity(weights), *([text.tolist() for text in some] for some in (texts, calibration)))

    def make() -> dict[str, torch.Tensor]:
        with torch.no_grad(), side_by_side() as pool:
            return {"kl": torch.tensor(_measure(weights, asked, texts, calibration, pool, say), dtype=torch.float64)}

    costs = kept_tensors("sensitivities", facts, make)["kl"].tolist()
    return tuple(Sensitivity(m.name, kl, saved_bytes(m), m.uses) for m, kl in zip(asked, costs, strict=True))


def _measure(
    weights: ModelWeights,
    asked: Sequence[MatrixPlan],
    texts: Sequence[torch.Tensor],
    calibration: Sequence[torch.Tensor],
    pool: Executor,
    say: Callable[[str], None],
) -> list[float]:
    """What each of the asked matrices costs."""
    calibrated: dict[str, QuantizedWeight] = {}
    if calibration:
        calibrated, factors = calibrate_apart(weights, [matrix.name for matrix in asked], calibration, pool, say)
        weights = weights.folded_by(factors)
    model = _Model(weights, texts, pool)
    found: dict[str, float] = {}
    stream, at = model.entered(), 0
    for matrix in sorted(asked, key=lambda matrix: model.first_slot(matrix.name)):
        say(f"measuring matrix {len(found) + 1} of {len(asked)}: {matrix.name}")
        first = model.first_slot(matrix.name)
        while at < first:
            stream, at = model.after(at, stream), at + 1
        four = calibrated.get(matrix.name) or quantize_weight(weights.float32(matrix.name), FOUR)
        with model.changed(matrix.name, four.dequantized()):
            found[matrix.name] = (
                model.divergence(0, model.entered()) if first == FROM_TOKENS else model.divergence(first, stream)
            )
        if not math.isfinite(found[matrix.name]):
            what = "with it at 4 bits and all others at 8, what the model says is no number"
            raise InputError(weights.where(matrix.name), what, "use --recipe fp32 to find out whether the checkpoint does")
    return [found[matrix.name] for matrix in asked]


class _Model:
    """The model at 8 bits, float32 between the matrices, and what it says of every text."""

    def __init__(self, weights: ModelWeights, texts: Sequence[torch.Tensor], pool: Executor) -> None:
        self.weights, self.texts, self.pool, self.schedule = weights, texts, pool, weights.plan.schedule
        self.executions = Executions(weights, max(map(len, texts)), pool)
        self.places: dict[str, list[nn.Linear | nn.Embedding]] = defaultdict(list)  # matrix -> the modules that hold it
        self.table, self.unfold = self._table(EMBEDDING), weights.unfold()
        self.entrance = self.executions.entrance(self._linear, self._table)
        self.blocks = [pieces.stored_block(weights, number, self._linear) for number in range(len(weights.plan.blocks))]
        self.head = pieces.head(weights, self._linear)
        self.wanted = list(pool.map(lambda x: self._onward(0, x), self.entered()))

    def entered(self) -> Stream:
        """The stream before the first execution."""
        unfold = 1 if self.unfold is None else self.unfold
        return list(self.pool.map(lambda text: self.entrance(self.table(text[None]) * unfold), self.texts))

    def after(self, slot: int, stream: Stream) -> Stream:
        """The stream after one execution."""
        return self.executions.run(self.blocks[self.schedule[slot]], slot, stream)

    def divergence(self, slot: int, stream: Stream) -> float:
        """Of what the model says now, run from an execution on, from what it said at first: nats a token."""

        def of(x: torch.Tensor, wanted: torch.Tensor) -> float:
            return float(nn.functional.kl_div(self._onward(slot, x), wanted, log_target=True, reduction="sum"))

        return sum(self.pool.map(of, stream, self.wanted)) / sum(map(len, self.texts))

    def first_slot(self, name: str) -> int:
        """The first execution a matrix takes part in; all of them where it belongs to the head, FROM_TOKENS before them."""
        kind, number, *_ = name.split(".")
        return self.schedule.index(int(number)) if kind == "blocks" else len(self.schedule) if kind == "head" else FROM_TOKENS

    @contextlib.contextmanager
    def changed(self, name: str, weight: torch.Tensor) -> Iterator[None]:
        """While entered, every place of a matrix holds another one."""
        before = self.places[name][0].weight
        for place in self.places[name]:
            place.weight = nn.Parameter(weight, requires_grad=False)
        try:
            yield
        finally:
            for place in self.places[name]:
                place.weight = before

    def _onward(self, slot: int, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of a text, [T, vocab], from its stream before an execution."""
        for at in range(slot, len(self.schedule)):
            x = self.executions.through(self.blocks[self.schedule[at]], at)(x)
        return self.head(x)[0].log_softmax(-1)

    def _linear(self, name: str, bias: torch.Tensor | None) -> nn.Linear:
        made = pieces.linear_of(self.weights.quantized(name).dequantized(), bias)
        self.places[name].append(made)
        return made

    def _table(self, name: str) -> nn.Embedding:
        made = nn.Embedding.from_pretrained(self.weights.quantized(name).dequantized())
        self.places[name].append(made)
        return made
