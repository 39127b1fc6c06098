"""The memory estimate of a model in any of the three formats, for any context and prompt chunk."""

from __future__ import annotations

from mobile_export.budget.coreml_memory import coreml_memory
from mobile_export.budget.facts import ModelFacts
from mobile_export.budget.onnx_memory import onnx_memory
from mobile_export.budget.pte_memory import pte_memory
from mobile_export.budget.terms import MemoryEstimate

USUAL_ONNXRUNTIME = (1, 31)  # what the constants were measured with


def estimate_memory(
    facts: ModelFacts,
    *,
    context: int | None = None,
    prompt_chunk: int | None = None,
    onnxruntime: tuple[int, int] = USUAL_ONNXRUNTIME,
    packed_file: bool = False,
) -> MemoryEstimate:
    """What a process keeps resident for a model.

    Args:
        context: KV rows; None for the model's.
        prompt_chunk: most tokens in one call; None for the model's.
        onnxruntime: of an ONNX model: the version that runs it.
        packed_file: of a .pte: XNNPACK maps packed weights from a file made on an earlier start.
    """
    rows, tokens = context or facts.max_context, prompt_chunk or facts.prompt_chunk
    if facts.format == "onnx":
        return MemoryEstimate(onnx_memory(facts, rows, tokens, onnxruntime=onnxruntime))
    if facts.format == "coreml":
        return MemoryEstimate(coreml_memory(facts, rows, tokens))
    return MemoryEstimate(pte_memory(facts, rows, tokens, packed_file=packed_file))
