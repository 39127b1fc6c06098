"""What Core ML would keep resident for a .mlpackage, from sizes alone: nothing of it was measured, and the intervals are wide.

What is known: weights lie in weight.bin as codes and float16 scales, the states keyCache and valueCache are float16, one
row a slot and token. What is not: whether a compute unit unpacks weights.
"""

from __future__ import annotations

from mobile_export.budget.facts import ModelFacts
from mobile_export.budget.interval import NOTHING, Interval, exactly
from mobile_export.budget.pte_memory import PROCESS, kv_why
from mobile_export.budget.terms import MIB, Term
from mobile_export.quantize.matrix_plan import MatrixPlan


def coreml_memory(facts: ModelFacts, context: int, prompt_chunk: int) -> tuple[Term, ...]:
    """The terms of a Core ML package, arguments as for the others."""
    spec = facts.spec
    weights = sum(_stored(matrix) for matrix in facts.matrices) + facts.float_bytes // 2
    unpacked = 2 * facts.parameters  # float16, if a unit does not compute on codes
    row = 2 * spec.vocab_size
    values = 2 * prompt_chunk * (3 * spec.intermediate_size + 4 * spec.hidden_size)
    return (
        Term(PROCESS, _mib(4, 10, 40), _mib(10, 20, 60), why="Core ML; not measured"),
        Term("weights", clean=exactly(weights), why="codes and float16 scales; mapped"),
        Term("unpacked weights", Interval(0, 0, max(unpacked, weights)), NOTHING, why="if a compute unit does not take codes"),
        Term("KV cache", exactly(facts.kv_bytes(context) + facts.state_bytes), why=kv_why(facts, context)),
        Term("activations", Interval(values / 2, values, 4 * values), why=f"of {prompt_chunk} tokens in one call"),
        Term(
            "logits",
            Interval(row, row, prompt_chunk * row),
            why="float16; a stock package gives them for every token of a call",
        ),
    )


def _stored(matrix: MatrixPlan) -> int:
    rows, columns = matrix.shape
    scales = rows * columns // matrix.precision.group_size if matrix.precision.group_size else rows
    return matrix.code_bytes // 2 if matrix.precision.bits == 32 else matrix.code_bytes + 2 * scales


def _mib(low: float, likely: float, high: float) -> Interval:
    return Interval(low, likely, high).times(MIB)
