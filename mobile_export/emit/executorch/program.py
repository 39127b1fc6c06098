"""From spec, plan and weights to the bytes of a .pte: pieces lowered once per shape, one delegate a piece, one outer graph.

pieces -> templates (one per shape and precision) -> an instance per stored block -> the Decoder with its pieces replaced
-> torch.export -> edge -> ExecuTorch program -> equal delegates merged, payloads laid down once -> bytes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import executorch.kernels.quantized  # noqa: F401  registers quantized_decomposed's out variants
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch.export import Dim, ExportedProgram, export

from mobile_export.emit.executorch.attention import CoreAttention, CustomAttention, CustomInt8Attention, SlotAttention
from mobile_export.emit.executorch.delegates import ENTRY, ENTRY_NORM, LoweredPieces, lower_pieces
from mobile_export.emit.executorch.embedding import gather
from mobile_export.emit.executorch.entry import PteEntry
from mobile_export.emit.executorch.joined import JoinedRotaryTables, SplitHeads
from mobile_export.emit.executorch.lowerable import attention_of, check_lowerable
from mobile_export.emit.executorch.lowering import EDGE, Delegated
from mobile_export.emit.executorch.pieces import SCALE, as_bytes, digest
from mobile_export.emit.executorch.rwkv import PteRwkvBlock, PteRwkvDecoder
from mobile_export.emit.executorch.segments import assemble, count_calls, named_bytes
from mobile_export.emit.executorch.short_conv import PteColumns, PteConvBlock
from mobile_export.emit.pte_methods import constant_methods
from mobile_export.errors import UsageError
from mobile_export.families.spec import DecoderSpec, RwkvSpec
from mobile_export.model.attention_rule import attention_rules
from mobile_export.model.decoder import Block, ConvBlock, Decoder
from mobile_export.model.entry import has_entry
from mobile_export.model.rwkv import RwkvDecoder
from mobile_export.quantize.sizes import kv_rows
from mobile_export.quantize.weights import PARTS, ModelWeights


@dataclass(frozen=True)
class PteOptions:
    """What a .pte is built for.

    max_context: most positions of a text. max_prompt: most tokens in one call; longer prompts are fed in chunks.
    attention: "custom" (the runtime's llama operators, where they can express the family's) or "core" (plain operators).
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
    attention: "custom" or "core", as it came to be; "none" for RWKV.
    parts: bytes of the file by part: "embedding", "head", "blocks", "norms", "positions", "graph"; they add up to the file.
    """

    file: bytes
    parts: dict[str, int]
    outside: dict[str, int]
    delegates: int
    calls: int
    attention: str


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
    spec, plan, kv_dtype = weights.recognised.spec, weights.plan, weights.recipe.kv.dtype
    check_lowerable(spec, kv_dtype)
    options = dataclasses.replace(options, attention=attention_of(spec, options.attention))
    if options.attention == "core" and kv_dtype != "float32":
        raise UsageError("--attention core", f"the recipe keeps the KV cache as {kv_dtype}", "use --attention custom")
    pieces = lower_pieces(weights, options.max_prompt, say)
    decoder = _rwkv(weights, pieces) if isinstance(spec, RwkvSpec) else _decoder(weights, options, pieces)
    part_of_key, beside, arguments = pieces.part_of_key, _bytes_beside(decoder, pieces), _constant_arguments(pieces)
    say("tracing the whole graph")
    traced = _trace(decoder.eval(), options.max_prompt)
    methods = constant_methods(spec, plan, options, bos_id, eos_ids)
    edge = to_edge(traced, compile_config=EDGE, constant_methods=methods)
    del traced, decoder, pieces
    say("writing the program")
    manager = edge.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            run_reinplace_pass=True,
        )
    )
    del edge
    named = named_bytes(manager) | arguments
    file = assemble(manager)
    plan_in_file = manager._emitter_output.program.execution_plan[0]
    outside, calls = count_calls(plan_in_file)
    parts = _part_bytes(named, part_of_key, beside, len(file))
    return PteProgram(file, parts, outside, len(plan_in_file.delegates), calls, options.attention)


def _bytes_beside(decoder: Decoder | RwkvDecoder, pieces: LoweredPieces) -> dict[str, int]:
    """Part -> bytes of its constants that no delegate looks up by name."""
    of_delegates = {key.removeprefix(SCALE) for key in pieces.part_of_key}  # a tied table's gather finds its codes among them
    gathered = sum(b.nbytes for b in decoder.embedding.buffers() if digest(as_bytes(b)) not in of_delegates)
    if isinstance(decoder, RwkvDecoder):
        return {"embedding": gathered, "norms": sum(b.nbytes for block in decoder.blocks for b in block.buffers(recurse=False))}
    tables = [buffer for tables in decoder.rotary for buffer in tables.buffers()]
    if pieces.positions is not None:
        tables += gather(pieces.positions).buffers()
    return {"embedding": gathered, "positions": sum(table.nbytes for table in tables)}


def _constant_arguments(pieces: LoweredPieces) -> dict[str, int]:
    """Digest -> bytes of every constant a delegate takes as an argument; equal ones are stored once."""
    constants = (constant for delegate in pieces.delegates.values() for constant in delegate.buffers(recurse=False))
    return {digest(as_bytes(constant)): constant.nbytes for constant in constants}


def _part_bytes(named: dict[str, int], part_of_key: dict[str, str], beside: dict[str, int], file_bytes: int) -> dict[str, int]:
    """Bytes of the file by part: delegates' constants by name or digest, what lies beside them, and the rest is graph."""
    parts = dict.fromkeys((*PARTS, "positions", "graph"), 0)
    for key, size in named.items():
        parts[part_of_key.get(key, "graph")] += size
    for part, size in beside.items():
        parts[part] += size
    parts["graph"] += file_bytes - sum(parts.values())
    return parts


class _PteDecoder(Decoder):
    """A Decoder whose attention forgets, when a step is done, what the step's executions had in common."""

    attend: SlotAttention

    def hidden(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        x = super().hidden(tokens, start)
        self.attend.forget()
        return x


def _decoder(weights: ModelWeights, options: PteOptions, pieces: LoweredPieces) -> Decoder:
    """The Decoder of lowered pieces."""
    spec, plan, delegates = weights.recognised.decoder, weights.plan, pieces.delegates
    return _PteDecoder(
        spec,
        plan.schedule,
        options.max_context,
        embedding=gather(pieces.table),
        unfold=weights.unfold(),
        entry=PteEntry(spec, options.max_context, pieces.positions, delegates.get(ENTRY)) if has_entry(spec) else None,
        blocks=[_block(spec, delegates, i, block) for i, block in enumerate(plan.blocks)],
        rotary=[JoinedRotaryTables(spec, rope, options.max_context) for rope in spec.ropes],
        attend=_attention(weights, options),
        head=delegates["head."],
        remember=PteColumns(spec, _conv_slots(weights), options.max_context) if spec.conv_kernel else None,
    )


def _rwkv(weights: ModelWeights, pieces: LoweredPieces) -> RwkvDecoder:
    """The RwkvDecoder of lowered pieces."""
    spec, plan, delegates = weights.recognised.spec, weights.plan, pieces.delegates
    assert isinstance(spec, RwkvSpec)
    prefixes = [f"blocks.{number}." for number in range(len(plan.blocks))]
    sums = [[weights.float32(f"{prefix}attention.{name}") for name in ("decay", "bonus")] for prefix in prefixes]
    return PteRwkvDecoder(
        spec,
        plan.schedule,
        embedding=gather(pieces.table),
        unfold=weights.unfold(),
        norm=delegates[ENTRY_NORM],
        blocks=[PteRwkvBlock(delegates, prefix, *vectors) for prefix, vectors in zip(prefixes, sums, strict=True)],
        head=delegates["head."],
    )


def _attention(weights: ModelWeights, options: PteOptions) -> SlotAttention:
    spec, plan = weights.recognised.decoder, weights.plan
    int8 = weights.recipe.kv.dtype == "int8"
    kind = CoreAttention if options.attention == "core" else CustomInt8Attention if int8 else CustomAttention
    rules = attention_rules(spec, plan.blocks, plan.schedule)
    rows = kv_rows(weights.recognised, plan, options.max_context, options.max_prompt)
    return kind(spec, {slot: rules[slot] for slot in rows}, rows, options.max_context)


def _conv_slots(weights: ModelWeights) -> list[int]:
    """The executions whose block mixes by a short convolution."""
    blocks, plan = weights.recognised.decoder.blocks, weights.plan
    return [slot for slot, stored in enumerate(plan.schedule) if blocks[plan.blocks[stored]].mixer == "conv"]


def _block(spec: DecoderSpec, delegates: Mapping[str, Delegated], stored: int, number: int) -> Block | ConvBlock:
    """A stored block of its delegates; number: the file's."""
    prefix, kind = f"blocks.{stored}.", spec.blocks[number]
    if kind.mixer == "conv":
        return PteConvBlock(delegates[f"{prefix}conv."], delegates[prefix], spec.conv_kernel)
    return Block(SplitHeads(delegates[f"{prefix}attention."], spec), delegates[f"{prefix}ffn."], kind.rope)


def _trace(decoder: Decoder | RwkvDecoder, max_prompt: int) -> ExportedProgram:
    length = min(3, max_prompt)
    tokens, start = torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    dynamic = {1: Dim("tokens", min=1, max=max_prompt)} if max_prompt > 1 else {}
    with torch.no_grad():
        return export(decoder, (tokens, start), dynamic_shapes=(dynamic, {}), strict=False)
