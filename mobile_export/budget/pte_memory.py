"""What ExecuTorch keeps resident for a .pte, term by term.

Constants were measured above the imports of one process, with executorch 1.5.1 on x86-64, over models of real shape that
differ in one thing at a time (benchmarks/memory_model.py holds the sum against 24 and more cases). On a phone kernels
pack by other rules: no kernel needs less than the codes and the scales, which is where the intervals begin.
"""

from __future__ import annotations

from mobile_export.budget.facts import ModelFacts, payload_bytes
from mobile_export.budget.interval import NOTHING, Interval, exactly, total
from mobile_export.budget.terms import MIB, Term
from mobile_export.families.spec import DecoderSpec
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.recipe import EMBEDDING, POSITIONS

PROCESS = "process"
ROW_BYTES = 8  # XNNPACK keeps a float32 sum and a bias a row beside codes and scales
FLOAT_ROW_BYTES = 4  # the bias alone
KERNEL_ROWS = 16  # rows of a packed tile (AVX512; 8 on arm64): a norm's mean is a product with one row, padded to it
DELEGATE_BYTES = 0.031 * MIB  # one delegate's operators and tensors
EXECUTION_BYTES = 0.006 * MIB  # instructions and values of one execution
ARENA_CUSTOM = 8  # float32 rows of hidden_size the planner keeps for a token outside delegates
ARENA_CORE = 16 / 3  # with plain operators, beside scores and mask


def pte_memory(facts: ModelFacts, context: int, prompt_chunk: int, *, packed_file: bool = False) -> tuple[Term, ...]:
    """The terms of a .pte.

    Args:
        context: KV rows it is, or would be, exported with.
        prompt_chunk: most tokens in one call it is, or would be, exported for.
        packed_file: XNNPACK keeps packed weights in a file it maps, which was made on an earlier start.
    """
    packed = total(_packed(matrix).times(count) for matrix, count in facts.counted) + _packed_norms(facts)
    source = max((payload_bytes(matrix) for matrix, _ in facts.counted), default=0)
    return (
        Term(PROCESS, _mib(0.3, 0.35, 8), _mib(3, 4.4, 15), why="the runtime's libraries before anything is loaded"),
        Term("runtime", _runtime(facts), _mib(0.5, 0.8, 2), why="delegates and instructions"),
        Term("code", _mib(0.5, 1.6, 3), _mib(3, 4.8, 8), when="run", why="stacks, and pages of libraries that run"),
        Term("packed weights", *((NOTHING, packed) if packed_file else (packed, NOTHING)), why=_packed_why(packed_file)),
        Term(
            "table", clean=exactly(_gathered(facts) + _rotary(facts, context)), why="gathered from, and rotary tables; mapped"
        ),
        Term("graph", clean=exactly(facts.graph_bytes), why="the program's instructions in the file"),
        Term("KV cache", exactly(facts.kv_bytes(context) + facts.state_bytes), why=kv_why(facts, context)),
        Term("arena", _arena(facts, context, prompt_chunk), why=f"values between delegates, {prompt_chunk} tokens in one call"),
        Term("workspace", _workspace(facts, prompt_chunk), when="run", why="values within a delegate"),
        Term("logits", exactly(4 * facts.spec.vocab_size), when="run", why="of one token, float32"),
        *(() if packed_file or facts.tied else (Term("source", clean=exactly(source), when="load", why=SOURCE_WHY),)),
    )


SOURCE_WHY = "the largest matrix as the file has it, while it is packed"


def kv_why(facts: ModelFacts, context: int) -> str:
    """Where the KV cache's size comes from."""
    return f"{facts.slots} slots of {context} tokens, {facts.kv_dtype}"


def tied_source_bytes(facts: ModelFacts) -> int:
    """Bytes of a tied table that is mapped a second time while its head is packed.

    The same pages, so no memory; a process's resident size (VmHWM) counts them twice all the same.
    """
    return max((payload_bytes(matrix) for matrix, _ in facts.counted), default=0) if facts.tied else 0


def _packed(matrix: MatrixPlan) -> Interval:
    """One packed copy, whatever the number of executions: equal delegates are one."""
    extra = FLOAT_ROW_BYTES if matrix.precision.bits == 32 else ROW_BYTES
    likely = payload_bytes(matrix) + extra * matrix.shape[0]
    return Interval(payload_bytes(matrix), likely, 1.02 * likely)


def _packed_norms(facts: ModelFacts) -> Interval:
    """Each norm's mean as a product with a constant row, and its weights."""
    likely = (2 * facts.stored_blocks + 1) * KERNEL_ROWS * 4 * facts.spec.hidden_size
    return Interval(min(facts.float_bytes, likely), likely, likely + facts.float_bytes)


def _packed_why(packed_file: bool) -> str:
    return "in a mapped file" if packed_file else "XNNPACK's copy of every distinct matrix"


def _runtime(facts: ModelFacts) -> Interval:
    delegates = 2 * facts.stored_blocks + 1
    likely = 0.12 * MIB + DELEGATE_BYTES * delegates + EXECUTION_BYTES * len(facts.schedule)
    return Interval(0.5 * likely, likely, 1.5 * likely)


def _gathered(facts: ModelFacts) -> int:
    return sum(payload_bytes(matrix) for matrix in facts.matrices if matrix.name in (EMBEDDING, POSITIONS))


def _rotary(facts: ModelFacts, context: int) -> int:
    spec = facts.spec
    return len(spec.ropes) * context * spec.head_dim * 2 * 4 if isinstance(spec, DecoderSpec) else 0


def _arena(facts: ModelFacts, context: int, tokens: int) -> Interval:
    """What the planner set aside at export for values outside delegates, all of it touched at load."""
    spec = facts.spec
    stream = 4 * tokens * spec.hidden_size
    likely: float = ARENA_CUSTOM * stream
    if facts.attention == "core" and isinstance(spec, DecoderSpec):
        likely = ARENA_CORE * stream + 4 * tokens * context * (2 * spec.num_attention_heads + 1)
    return Interval(0.6 * likely, likely, 1.3 * likely)


def _workspace(facts: ModelFacts, tokens: int) -> Interval:
    """What XNNPACK sets aside for the widest delegate, once for all of them."""
    likely = 4 * tokens * (2 * facts.spec.intermediate_size + facts.spec.hidden_size)
    return Interval(0.5 * likely, likely, 1.5 * likely)


def _mib(low: float, likely: float, high: float) -> Interval:
    return Interval(low, likely, high).times(MIB)
