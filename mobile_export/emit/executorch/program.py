"""From spec, plan and weights to the bytes of a .pte: pieces lowered once per shape, one delegate a piece, one outer graph.

pieces -> templates (one per shape and precision) -> an instance per stored block -> the Decoder with its pieces replaced
-> torch.export -> edge -> ExecuTorch program -> equal delegates merged, payloads laid down once -> bytes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import executorch.kernels.quantized  # noqa: F401  registers quantized_decomposed's out variants
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch import nn
from torch.export import Dim, ExportedProgram, export

from mobile_export.emit.executorch.attention import CoreAttention, CustomAttention, CustomInt8Attention
from mobile_export.emit.executorch.delegates import lower_pieces
from mobile_export.emit.executorch.embedding import gather
from mobile_export.emit.executorch.lowerable import check_lowerable
from mobile_export.emit.executorch.lowering import EDGE
from mobile_export.emit.executorch.metadata import constant_methods
from mobile_export.emit.executorch.pieces import SCALE, JoinedRotaryTables, SplitHeads, as_bytes, digest
from mobile_export.emit.executorch.segments import assemble, count_calls, named_bytes
from mobile_export.errors import UsageError
from mobile_export.families.spec import DecoderSpec
from mobile_export.model.decoder import Block, Decoder
from mobile_export.quantize.weights import PARTS, ModelWeights


@dataclass(frozen=True)
class PteOptions:
    """What a .pte is built for.

    max_context: KV rows per slot. max_prompt: most tokens in one call; longer prompts are fed in chunks.
    attention: "custom" (the runtime's llama operators) or "core" (plain operators).
    """

    max_context: int
    max_prompt: int
    attention: str = "custom"


@dataclass(frozen=True)
class PteProgram:
    """A finished program.

    file: the .pte's bytes.
    outside: operator -> how often it is called outside a delegate, the price of a step beside its linears.
    delegates: entries in the file; calls: delegate calls per step.
    parts: bytes of the file by part: "embedding", "head", "blocks", "norms", "positions", "graph"; they add up to the file.
    """

    file: bytes
    parts: dict[str, int]
    outside: dict[str, int]
    delegates: int
    calls: int


def build_program(
    weights: ModelWeights,
    options: PteOptions,
    bos_id: int | None,
    eos_ids: tuple[int, ...],
    say: Callable[[str], None] = lambda _: None,
) -> PteProgram:
    """Lower a model to a .pte.

    Args:
        say: told what is under way, a line at a time.
    Raises:
        InputError: a graph this emitter does not lower, a weight that cannot be read or is not finite.
        UsageError: int8 KV with core attention.
    """
    check_lowerable(weights.recognised.spec, options.max_context)
    spec, plan = weights.recognised.decoder, weights.plan
    attend = _attention(weights.recipe.kv.dtype, options, spec, len(plan.schedule))
    pieces = lower_pieces(weights, options.max_prompt, say)
    delegates = pieces.delegates
    rotary = JoinedRotaryTables(spec, options.max_context)
    decoder = Decoder(
        spec,
        plan.schedule,
        options.max_context,
        embedding=gather(pieces.table),
        blocks=[
            Block(SplitHeads(delegates[f"blocks.{i}.attention."], spec), delegates[f"blocks.{i}.ffn."])
            for i in range(len(plan.blocks))
        ],
        rotary=[rotary],
        attend=attend,
        head=delegates["head."],
    )
    positions = rotary.cos.nbytes + rotary.sin.nbytes
    part_of_key = pieces.part_of_key
    of_delegates = {key.removeprefix(SCALE) for key in part_of_key}  # a tied table's gather finds its codes among them
    gathered = sum(b.nbytes for b in decoder.embedding.buffers() if digest(as_bytes(b)) not in of_delegates)
    say("tracing the whole graph")
    traced = _trace(decoder.eval(), options.max_prompt)
    methods = constant_methods(spec, plan, options, bos_id, eos_ids)
    edge = to_edge(traced, compile_config=EDGE, constant_methods=methods)
    del traced, decoder, delegates, pieces
    say("writing the program")
    manager = edge.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            run_reinplace_pass=True,
        )
    )
    del edge
    named = named_bytes(manager)
    file = assemble(manager)
    plan_in_file = manager._emitter_output.program.execution_plan[0]
    outside, calls = count_calls(plan_in_file)
    parts = _part_bytes(named, part_of_key, gathered, positions, len(file))
    return PteProgram(file, parts, outside, len(plan_in_file.delegates), calls)


def _part_bytes(
    named: dict[str, int], part_of_key: dict[str, str], gathered: int, positions: int, file_bytes: int
) -> dict[str, int]:
    """Bytes of the file by part: delegates' constants by name, what the gather holds beside them, and the rest is graph."""
    parts = dict.fromkeys((*PARTS, "positions", "graph"), 0)
    for key, size in named.items():
        parts[part_of_key.get(key, "graph")] += size
    parts["embedding"] += gathered
    parts["positions"] = positions
    parts["graph"] += file_bytes - sum(parts.values())
    return parts


def _attention(kv_dtype: str, options: PteOptions, spec: DecoderSpec, slots: int) -> nn.Module:
    if options.attention == "core":
        if kv_dtype != "float32":
            raise UsageError("--attention core", f"the recipe keeps the KV cache as {kv_dtype}", "use --attention custom")
        return CoreAttention(spec, slots, options.max_context)
    return (CustomInt8Attention if kv_dtype == "int8" else CustomAttention)(spec, slots, options.max_context)


def _trace(decoder: Decoder, max_prompt: int) -> ExportedProgram:
    length = min(3, max_prompt)
    tokens, start = torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    dynamic = {1: Dim("tokens", min=1, max=max_prompt)} if max_prompt > 1 else {}
    with torch.no_grad():
        return export(decoder, (tokens, start), dynamic_shapes=(dynamic, {}), strict=False)
