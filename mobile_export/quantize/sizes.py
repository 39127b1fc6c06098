"""What a checkpoint weighs before anything is exported: parameters, bytes per part and precision, KV bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobile_export.families.spec import DecoderSpec, Recognised, RwkvSpec
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.recipe import Precision

if TYPE_CHECKING:
    from mobile_export.quantize.weights import ModelWeights
    from mobile_export.sharing import SharingPlan

GROUP_SIZE = 32  # of the 4-bit column


@dataclass(frozen=True)
class PartSize:
    """One part of a model. parameters: stored. bytes_*: in a .pte at that precision, norms float32 throughout.

    bytes_4_bit is None where groups of 32 do not divide a matrix; bytes_recipe is what the recipe makes of it.
    """

    name: str
    parameters: int
    bytes_fp16: int
    bytes_8_bit: int
    bytes_4_bit: int | None
    bytes_recipe: int


def part_sizes(weights: ModelWeights) -> tuple[PartSize, ...]:
    """Every part that holds anything, every stored weight once."""
    predicted = weights.predicted_bytes()
    return tuple(
        _part_size(weights, part, size)
        for part, size in predicted.items()
        if any(weights.part_of(name) == part for name in weights.sources)
    )


def _part_size(weights: ModelWeights, part: str, bytes_recipe: int) -> PartSize:
    names = [name for name in weights.stored() if weights.part_of(name) == part]
    if part == "norms":
        count = sum(math.prod(weights.shape(name)) for name in names)
        return PartSize(part, count, 4 * count, 4 * count, 4 * count, bytes_recipe)
    matrices = [weights.matrices[name] for name in names]
    count = sum(m.parameters for m in matrices)
    eight = sum(_bytes_at(m, Precision(8)) for m in matrices)
    divides = all(m.shape[1] % GROUP_SIZE == 0 for m in matrices)
    four = sum(_bytes_at(m, Precision(4, GROUP_SIZE)) for m in matrices) if divides else None
    return PartSize(part, count, 2 * count, eight, four, bytes_recipe)


def _bytes_at(matrix: MatrixPlan, precision: Precision) -> int:
    at = MatrixPlan(matrix.name, matrix.shape, precision, matrix.uses)
    return at.code_bytes + at.scale_bytes


def stored_parameters(weights: ModelWeights) -> int:
    """Parameters of the artifact, every stored weight once."""
    return sum(math.prod(weights.shape(name)) for name in weights.stored())


def executed_parameters(weights: ModelWeights) -> int:
    """Parameters the same network would store with nothing shared: every execution's, and a head of its own."""
    return sum(math.prod(weights.shape(name)) * weights.executions_of(name) for name in weights.stored())


def bits_per_weight(weights: ModelWeights) -> float:
    """Bits of all matrices' codes and scales over their parameters."""
    bits = 8 * sum(m.code_bytes + m.scale_bytes for m in weights.matrices.values())
    return bits / sum(m.parameters for m in weights.matrices.values())


def kv_bytes(spec: DecoderSpec | RwkvSpec, rows: int, dtype: str) -> int:
    """Bytes of so many rows of KV slots: key and value of a token each, with a scale and a zero point a head for int8."""
    if isinstance(spec, RwkvSpec):
        return 0
    head = spec.head_dim + 5 if dtype == "int8" else 4 * spec.head_dim
    return 2 * rows * spec.num_key_value_heads * head


def kv_slots(recognised: Recognised, plan: SharingPlan) -> int:
    """Executions that keep keys and values: all but those of a short convolution, whose columns do not grow."""
    return len(kv_reach(recognised, plan))


def kv_reach(recognised: Recognised, plan: SharingPlan) -> dict[int, int | None]:
    """Execution that keeps keys and values -> most positions it attends to, None: the whole past."""
    kinds = (recognised.kinds[plan.blocks[stored]] for stored in plan.schedule)
    return {slot: kind.reach for slot, kind in enumerate(kinds) if kind is not None and kind.mixer == "attention"}


def kv_rows(recognised: Recognised, plan: SharingPlan, context: int, max_prompt: int) -> dict[int, int]:
    """Execution -> rows of its KV slot in a .pte: the context, or what is seen between the first and last token of a call.

    All tokens of a call are written before the first of them reads, so none may take the place of a row it sees.
    """
    reaches = kv_reach(recognised, plan).items()
    return {slot: context if reach is None else min(context, reach + max_prompt - 1) for slot, reach in reaches}


def state_bytes(recognised: Recognised, plan: SharingPlan) -> int:
    """Bytes of what executions keep beside keys and values, float32, the same at every length of text."""
    spec = recognised.spec
    if isinstance(spec, RwkvSpec):
        return 4 * spec.state_size * len(plan.schedule)
    columns = len(plan.schedule) - kv_slots(recognised, plan)
    return 4 * (spec.conv_kernel - 1) * spec.hidden_size * columns if columns else 0


def embedding_share(recognised: Recognised, weights: ModelWeights) -> float:
    """Share of the stored parameters that lie in the token table, and in the head where it has its own."""
    table = recognised.spec.vocab_size * recognised.spec.table_size
    return table * (1 if weights.plan.tied else 2) / stored_parameters(weights)
