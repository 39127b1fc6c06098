"""Every piece of a model as a delegate: a template for each shape, an instance for each stored block."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from mobile_export.emit.executorch import rwkv
from mobile_export.emit.executorch.delegable import for_xnnpack, head_of
from mobile_export.emit.executorch.entry import EntryPiece, needs_piece
from mobile_export.emit.executorch.joined import JoinedAttentionInput, shape_of
from mobile_export.emit.executorch.lowering import Delegated, Shape, Template, instantiate, lower_template
from mobile_export.emit.executorch.pieces import Constant, Weight, constants_of
from mobile_export.emit.executorch.short_conv import ConvInput, ConvOutput
from mobile_export.families.spec import BlockSpec, DecoderSpec, RwkvSpec
from mobile_export.model.decoder import FeedForward
from mobile_export.model.rwkv import RwkvHead
from mobile_export.quantize.recipe import EMBEDDING, POSITIONS, Precision
from mobile_export.quantize.weights import ModelWeights

ENTRY, ENTRY_NORM = "embedding.", "embedding.norm."
INNER = re.compile(r"^inner\.")  # ConvInput's word for "in"
TAP = re.compile(r"conv\.taps\.(\d+)")  # a column of a conv block's kernel


@dataclass(frozen=True)
class _Piece:
    """A piece of the decoder: where its weights are named, what it is, what it takes and gives after [1, T], largest T.

    block: of a block's piece, what it depends on beside the spec.
    """

    prefix: str
    kind: type[nn.Module]
    takes: tuple[Shape, ...]
    gives: tuple[Shape, ...]
    max_prompt: int
    block: BlockSpec | None = None

    def shape(self) -> _Piece:
        """The piece without its place in the model."""
        return dataclasses.replace(self, prefix="")


def _pieces(spec: DecoderSpec | RwkvSpec, blocks: Sequence[int], max_prompt: int) -> Iterator[_Piece]:
    if isinstance(spec, RwkvSpec):
        yield from _rwkv_pieces(spec, len(blocks), max_prompt)
        return
    stream, query = (spec.hidden_size,), (spec.num_attention_heads, spec.head_dim)
    joined = (spec.num_attention_heads + 2 * spec.num_key_value_heads, spec.head_dim)
    if needs_piece(spec):
        table = (spec.table_size,)
        yield _Piece(ENTRY, EntryPiece, (table, stream) if spec.learned_positions else (table,), (stream,), max_prompt)
    for i, block in enumerate(blocks):
        kind = shape_of(spec, spec.blocks[block])
        if kind.mixer == "conv":
            yield _Piece(f"blocks.{i}.conv.", ConvInput, (stream,), ((3 * spec.hidden_size,),), max_prompt, kind)
            yield _Piece(f"blocks.{i}.", ConvOutput, (stream,) * (2 + spec.conv_kernel), (stream,), max_prompt, kind)
            continue
        takes = (stream,) if kind.rope is None else (stream, joined, joined)
        yield _Piece(f"blocks.{i}.attention.", JoinedAttentionInput, takes, (joined,), max_prompt, kind)
        yield _Piece(f"blocks.{i}.ffn.", FeedForward, (stream, query), (stream,), max_prompt)
    yield _Piece("head.", head_of(spec), (stream,), ((spec.vocab_size,),), 1)


def _rwkv_pieces(spec: RwkvSpec, blocks: int, max_prompt: int) -> Iterator[_Piece]:
    stream, inner = (spec.hidden_size,), (spec.attention_hidden_size,)
    yield _Piece(ENTRY_NORM, rwkv.Norm, (stream,), (stream,), max_prompt)
    for i in range(blocks):
        yield _Piece(f"blocks.{i}.attention.norm.", rwkv.Norm, (stream,), (stream,), max_prompt)
        yield _Piece(f"blocks.{i}.attention.", rwkv.TimeInput, (stream, stream), (inner, inner, inner), max_prompt)
        yield _Piece(f"blocks.{i}.", rwkv.TimeOutput, (stream, inner, inner), (stream, stream), max_prompt)
        yield _Piece(f"blocks.{i}.ffn.", rwkv.ChannelOutput, (stream, stream, stream), (stream,), max_prompt)
    yield _Piece("head.", RwkvHead, (stream,), ((spec.vocab_size,),), 1)


@dataclass(frozen=True)
class LoweredPieces:
    """Every piece as a delegate.

    delegates: by prefix, "blocks.3.ffn." or "head.".
    part_of_key: name of each constant they look up -> the part of the model it is billed to.
    table: the token table at its precision, for the gather; positions: a learned table of them likewise.
    """

    delegates: dict[str, Delegated]
    part_of_key: dict[str, str]
    table: Weight
    positions: Weight | None


def lower_pieces(weights: ModelWeights, max_prompt: int, say: Callable[[str], None]) -> LoweredPieces:
    """Lower every stored block's pieces and the head, for calls of up to max_prompt tokens.

    One thread makes the numbers while this one lowers the templates.

    Raises:
        InputError: a weight that cannot be read or is not finite.
    """
    spec = weights.recognised.spec
    pieces = list(_pieces(spec, weights.plan.blocks, max_prompt))
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
            precisions = {name: weights.matrices[s].precision for name, s in places.items() if s in weights.matrices}
            template = _template(piece.shape(), spec, tuple(precisions.items()))
            lowered[piece.prefix] = instantiate(template, constants)
            for name, source in places.items():
                part_of_key.update((constant.key, weights.part_of(source)) for constant in constants[name])
        learned = isinstance(spec, DecoderSpec) and spec.learned_positions
        positions = _weight(weights, POSITIONS) if learned else None
        return LoweredPieces(lowered, part_of_key, table.result(), positions)
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def _template(piece: _Piece, spec: DecoderSpec | RwkvSpec, precisions: tuple[tuple[str, Precision], ...]) -> Template:
    """The template of every piece of one shape; a lowering takes seconds whatever the size."""
    return lower_template(for_xnnpack(_empty(piece, spec)), dict(precisions), piece.takes, piece.gives, piece.max_prompt)


def _empty(piece: _Piece, spec: DecoderSpec | RwkvSpec) -> nn.Module:
    with torch.device("meta"):
        return piece.kind(spec, piece.block) if piece.block else piece.kind(spec)


def _places(weights: ModelWeights, piece: _Piece, spec: DecoderSpec | RwkvSpec) -> dict[str, str]:
    """Parameter of a piece -> the weight it reads."""
    names = [name for name, _ in _empty(piece, spec).named_parameters()]
    return {name: weights.source_of(piece.prefix + INNER.sub("in.", TAP.sub("conv.kernel", name))) for name in names}


def _constants(weights: ModelWeights, places: dict[str, str]) -> dict[str, tuple[Constant, ...]]:
    made = {}
    for name, source in places.items():
        weight, tap = _weight(weights, source), TAP.fullmatch(name)
        if tap and isinstance(weight, torch.Tensor):
            weight = weight[:, 0, int(tap[1])]
        made[name] = constants_of(weight)
    return made


def _weight(weights: ModelWeights, name: str) -> Weight:
    if name in weights.matrices and weights.matrices[name].precision.bits < 32:
        return weights.quantized(name)
    return weights.float32(name)
