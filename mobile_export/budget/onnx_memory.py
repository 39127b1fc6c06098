"""What onnxruntime keeps resident for an ONNX model, term by term.

Constants were measured above the imports of one process, with onnxruntime 1.31.1 on x86-64 (benchmarks/memory_model.py).
Kernels of other processors pack by other rules: none needs less than the codes and the scales.
"""

from __future__ import annotations

from mobile_export.budget.facts import VALUE_BYTES, ModelFacts
from mobile_export.budget.interval import Interval, exactly, total
from mobile_export.budget.pte_memory import PROCESS, SOURCE_WHY, kv_why
from mobile_export.budget.terms import MIB, Term
from mobile_export.emit.onnx.blocks import block_size
from mobile_export.families.spec import DecoderSpec
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.recipe import EMBEDDING

ONE_COPY = (1, 28)  # the first version that packs a matrix once, however many nodes multiply with it
BLOCK_BYTES = 8  # beside the codes: a float32 scale and a float32 sum for every block
EXECUTION_BYTES = 0.13 * MIB  # nodes, kernels and their shapes of one execution
FAULT_AROUND = 64 * 1024  # what Linux maps at the touch of one page of a file


def onnx_memory(facts: ModelFacts, context: int, prompt_chunk: int, *, onnxruntime: tuple[int, int]) -> tuple[Term, ...]:
    """The terms of an ONNX model.

    Args:
        context: KV rows the app allocates.
        prompt_chunk: most tokens the app gives in one call.
        onnxruntime: its version, (1, 31).
    """
    spec = facts.spec
    float_bytes = VALUE_BYTES[facts.activations]
    packed = total(_packed(matrix, facts).times(count * _copies(matrix, facts, onnxruntime)) for matrix, count in facts.counted)
    scales = sum(_scale_count(matrix) for matrix in facts.matrices) * float_bytes
    kv = facts.kv_bytes(context) * (2 if facts.portable else 1)  # the portable graph copies past to present
    tokens_with_logits = prompt_chunk if facts.all_logits else 1
    return (
        Term(PROCESS, _mib(2, 8, 10), _mib(8, 11, 16), why="the runtime's libraries before anything is loaded"),
        Term("runtime", _runtime(facts), _mib(6, 8.1, 10), why="session and nodes"),
        Term("code", clean=_mib(3, 3.9, 5), when="run", why="pages of libraries that run"),
        Term("packed weights", packed, why="onnxruntime's copy of every matrix that is multiplied with"),
        Term("scales", clean=exactly(0 if facts.portable else scales), why="as the file has them; mapped"),
        _table(facts, context),
        Term("graph", exactly(facts.graph_bytes), why="model.onnx, parsed"),
        Term("KV cache", exactly(kv + facts.state_bytes), when="run", why=kv_why(facts, context)),
        Term(
            "activations", _activations(facts, context, prompt_chunk), when="run", why=f"of {prompt_chunk} tokens in one call"
        ),
        Term("logits", exactly(4 * spec.vocab_size * tokens_with_logits), when="run", why=f"of {tokens_with_logits}, float32"),
        _source(facts),
    )


def _copies(matrix: MatrixPlan, facts: ModelFacts, onnxruntime: tuple[int, int]) -> int:
    """Packed copies of a matrix: one, or one an execution in old versions and in the portable graph."""
    apart = onnxruntime < ONE_COPY or facts.portable
    return matrix.uses if apart and matrix.name.startswith("blocks.") else 1


def _scale_count(matrix: MatrixPlan) -> int:
    return 0 if matrix.precision.bits == 32 else matrix.parameters // block_size(matrix)


def _packed(matrix: MatrixPlan, facts: ModelFacts) -> Interval:
    """One packed copy, and what else its node keeps."""
    scales = _scale_count(matrix)
    likely = float(matrix.code_bytes + BLOCK_BYTES * scales)
    if facts.activations == "float16":
        likely += 4 * scales  # float32 copies of scales the file has in float16
    if facts.portable and matrix.name.startswith("blocks."):
        likely += matrix.code_bytes  # fusing DequantizeLinear into the product leaves the unpacked codes behind
    doubt = 1.1 if facts.portable else 1.02
    return Interval(matrix.code_bytes + 2 * scales, likely, doubt * likely)


def _runtime(facts: ModelFacts) -> Interval:
    likely = 3.2 * MIB + EXECUTION_BYTES * len(facts.schedule)
    return Interval(0.6 * likely, likely, 1.4 * likely)


def _source(facts: ModelFacts) -> Term:
    """What is read of the file while it is packed, and gone after it; the portable graph's is unpacked into memory."""
    tied_float = facts.tied and any(m.name == EMBEDDING and m.precision.bits == 32 for m in facts.matrices)
    largest = 0 if tied_float else max(m.code_bytes for m in facts.multiplied)  # a float table stays mapped: not another page
    if facts.portable:
        return Term("source", exactly(largest), when="load", why="the largest matrix, unpacked while it is packed")
    return Term("source", clean=exactly(largest), when="load", why=SOURCE_WHY)


def _table(facts: ModelFacts, context: int) -> Term:
    """Pages of the table that lookups touch, with those the kernel maps around them: soon all of it.

    A float table is multiplied with as it is mapped, and the portable graph reads its table from end to end.
    """
    table = next(matrix for matrix in facts.matrices if matrix.name == EMBEDDING)
    if table.precision.bits == 32:
        return Term("table", clean=exactly(table.code_bytes), why="of floats; mapped")
    if facts.portable:
        return Term("table", clean=exactly(table.code_bytes), when="run", why="read whole; mapped")
    most = min(table.code_bytes, FAULT_AROUND * context)
    return Term("table", clean=Interval(0.1 * most, most, most), when="run", why="rows that were looked up; mapped")


def _activations(facts: ModelFacts, context: int, tokens: int) -> Interval:
    """Twice the widest values of a block: the arena grows by powers of two, and not all that is freed is used again."""
    spec = facts.spec
    values = 4 * tokens * (3 * spec.intermediate_size + 4 * spec.hidden_size)
    scores = 4 * tokens * context if isinstance(spec, DecoderSpec) else 0
    return Interval(values, 2 * values + scores, 2.6 * values + 8 * scores)


def _mib(low: float, likely: float, high: float) -> Interval:
    return Interval(low, likely, high).times(MIB)
