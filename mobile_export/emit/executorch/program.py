"""From spec, plan and weights to the bytes of a .pte: pieces lowered once per shape, one delegate a piece, one outer graph.

pieces -> templates (one per shape and precision) -> an instance per stored block -> the Decoder with its pieces replaced
-> torch.export -> edge -> ExecuTorch program -> equal delegates merged, payloads laid down once -> bytes
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import executorch.kernels.quantized  # noqa: F401  registers quantized_decomposed's out variants
import torch
from executorch.exir import EdgeProgramManager, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch import nn
from torch.export import Dim, ExportedProgram, export

from mobile_export.emit.executorch.attention import CoreAttention, CustomAttention, CustomInt8Attention
from mobile_export.emit.executorch.embedding import gather
from mobile_export.emit.executorch.lowering import EDGE, Delegated, Shape, Template, instantiate, lower_template
from mobile_export.emit.executorch.metadata import constant_methods
from mobile_export.emit.executorch.pieces import (
    SCALE,
    Constant,
    RotatedAttentionInput,
    Weight,
    as_bytes,
    constants_of,
    digest,
    for_xnnpack,
    qkv_rows,
)
from mobile_export.emit.executorch.segments import assemble, named_bytes
from mobile_export.errors import UsageError
from mobile_export.families.spec import DecoderSpec
from mobile_export.model.decoder import Block, Decoder, FeedForward, Head
from mobile_export.quantize.recipe import Precision
from mobile_export.quantize.weights import EMBEDDING, PARTS, ModelWeights


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
        InputError: a weight that cannot be read or is not finite.
        UsageError: int8 KV with core attention.
    """
    spec, plan = weights.recognised.spec, weights.plan
    attend = _attention(weights.recipe.kv.dtype, options, spec, len(plan.schedule))
    pieces = list(_pieces(spec, len(plan.blocks), options.max_prompt))
    lowered, part_of_key, table = _lower_all(pieces, weights, say)
    decoder = Decoder(
        spec,
        plan.schedule,
        options.max_context,
        embedding=gather(table),
        blocks=[Block(lowered[f"blocks.{i}.attention."], lowered[f"blocks.{i}.ffn."]) for i in range(len(plan.blocks))],
        attend=attend,
        head=lowered["head."],
    )
    positions = decoder.cos.nbytes + decoder.sin.nbytes
    shared = {key.removeprefix(SCALE) for key in part_of_key}  # what a tied table's gather finds among the head's constants
    gathered = sum(b.nbytes for b in decoder.embedding.buffers() if digest(as_bytes(b)) not in shared)
    say("tracing the whole graph")
    traced = _trace(decoder.eval(), options.max_prompt)
    methods = constant_methods(spec, plan, options, bos_id, eos_ids)
    edge = to_edge(traced, compile_config=EDGE, constant_methods=methods)
    del traced, decoder, lowered, table
    outside, calls = _count_operators(edge)
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
    parts = _part_bytes(named, part_of_key, gathered, positions, len(file))
    return PteProgram(file, parts, outside, len(manager._emitter_output.program.execution_plan[0].delegates), calls)


@dataclass(frozen=True)
class _Piece:
    """A piece of the decoder: where its weights are named, what it is, what it takes and gives after [1, T], largest T."""

    prefix: str
    kind: type[nn.Module]
    takes: tuple[Shape, ...]
    gives: tuple[Shape, ...]
    max_prompt: int

    def shape(self) -> _Piece:
        """The piece without its place in the model."""
        return dataclasses.replace(self, prefix="")


def _pieces(spec: DecoderSpec, blocks: int, max_prompt: int) -> Iterator[_Piece]:
    stream, rotary = (spec.hidden_size,), (1, spec.head_dim)
    query, value = (spec.num_attention_heads, spec.head_dim), (spec.num_key_value_heads, spec.head_dim)
    for i in range(blocks):
        takes = (stream, rotary, rotary)
        yield _Piece(f"blocks.{i}.attention.", RotatedAttentionInput, takes, (query, value, value), max_prompt)
        yield _Piece(f"blocks.{i}.ffn.", FeedForward, (stream, query), (stream,), max_prompt)
    yield _Piece("head.", Head, (stream,), ((spec.vocab_size,),), 1)


def _lower_all(
    pieces: list[_Piece], weights: ModelWeights, say: Callable[[str], None]
) -> tuple[dict[str, Delegated], dict[str, str], Weight]:
    """Every piece's delegate by prefix, the part each of their constants is billed to, and the token table.

    One thread makes the numbers while this one lowers the templates.
    """
    spec = weights.recognised.spec
    lowered: dict[str, Delegated] = {}
    part_of_key: dict[str, str] = {}
    pool = ThreadPoolExecutor(1)
    try:
        made = {piece.prefix: pool.submit(_constants, weights, _places(weights, piece, spec)) for piece in pieces}
        table = pool.submit(_weight, weights, EMBEDDING)
        for number, piece in enumerate(pieces):
            say(f"lowering piece {number + 1} of {len(pieces)}")
            constants = made.pop(piece.prefix).result()
            places = _places(weights, piece, spec)
            precisions = {
                name: weights.matrices[place.source].precision
                for name, place in places.items()
                if place.source in weights.matrices
            }
            template = _template(piece.shape(), spec, tuple(precisions.items()))
            lowered[piece.prefix] = instantiate(template, constants)
            for name, place in places.items():
                part_of_key.update((constant.key, weights.part_of(place.source)) for constant in constants[name])
        return lowered, part_of_key, table.result()
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def _template(piece: _Piece, spec: DecoderSpec, precisions: tuple[tuple[str, Precision], ...]) -> Template:
    """The template of every piece of one shape; a lowering takes seconds whatever the size."""
    return lower_template(for_xnnpack(_empty(piece, spec)), dict(precisions), piece.takes, piece.gives, piece.max_prompt)


def _empty(piece: _Piece, spec: DecoderSpec) -> nn.Module:
    with torch.device("meta"):
        return piece.kind(spec)


@dataclass(frozen=True)
class _Place:
    """What a parameter of a piece holds: a weight of the graph, or some of its rows."""

    source: str
    rows: slice | None = None


def _places(weights: ModelWeights, piece: _Piece, spec: DecoderSpec) -> dict[str, _Place]:
    """Parameter of a piece -> what it holds. Query, key and value are rows of one weight, "qkv"."""
    places = {}
    for name, _ in _empty(piece, spec).named_parameters():
        joined, _, rest = name.partition(".")
        if joined == "qkv":
            number, _, kind = rest.partition(".")
            places[name] = _Place(f"{piece.prefix}qkv.{kind}", qkv_rows(spec)[int(number)])
        else:
            places[name] = _Place(weights.source_of(piece.prefix + name))
    return places


def _constants(weights: ModelWeights, places: dict[str, _Place]) -> dict[str, tuple[Constant, ...]]:
    whole = {source: _weight(weights, source) for source in {place.source for place in places.values()}}
    return {
        name: constants_of(whole[place.source] if place.rows is None else whole[place.source][place.rows])
        for name, place in places.items()
    }


def _weight(weights: ModelWeights, name: str) -> Weight:
    if name in weights.matrices and weights.matrices[name].precision.bits < 32:
        return weights.quantized(name)
    return weights.float32(name)


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


def _count_operators(edge: EdgeProgramManager) -> tuple[dict[str, int], int]:
    """Operators called outside a delegate, by name, and the number of delegate calls."""
    outside: Counter[str] = Counter()
    calls = 0
    for node in edge.exported_program().graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if "executorch_call_delegate" in str(node.target):
            calls += 1
        elif isinstance(node.meta.get("val"), torch.Tensor):
            outside[node.target.__name__] += 1
    return dict(outside.most_common()), calls
