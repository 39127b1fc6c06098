"""The same numbers evaluated in plain PyTorch: what a quantized artifact is held against.

Shares the Decoder's wiring with the emitters, and neither their kernels nor their packing. That the wiring is right is
shown against transformers, in float32 (oracle.py and the tests).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mobile_export.emit.onnx.blocks import block_size
from mobile_export.families.spec import RwkvSpec
from mobile_export.model.attention import PlainAttention
from mobile_export.model.attention_rule import AttentionRule, attention_rules
from mobile_export.model.decoder import AttentionInput, Block, ConvBlock, Decoder, FeedForward, Head
from mobile_export.model.entry import Entry, has_entry
from mobile_export.model.rotary import RotaryTables
from mobile_export.model.rwkv import RwkvBlock, RwkvDecoder, RwkvHead
from mobile_export.model.short_conv import PlainColumns, ShortConv
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.recipe import EMBEDDING, POSITIONS
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.quantized_linear import (
    Activations,
    DynamicInt8Linear,
    QuantizedEmbedding,
    quantize_dequantize_blocks,
    quantize_dequantize_rows,
)

Rules = Sequence[AttentionRule]
Reference = Decoder | RwkvDecoder  # both go from (tokens, start) to logits


@dataclass(frozen=True)
class Arithmetic:
    """What is a runtime's own in computing with quantized numbers.

    activations: for a matrix, how its input goes through int8 and back.
    int8_cache: an attention whose keys and values go through int8, for recipes that keep them so.
    """

    activations: Callable[[MatrixPlan], Activations]
    int8_cache: Callable[[Rules], PlainAttention]


class Int8CacheAttention(PlainAttention):
    """PlainAttention over query, key and value that went through int8, one scale per token and head."""

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        query, key, value = (quantize_dequantize_rows(x) for x in (query, key, value))
        return super().forward(slot, query, key, value, start)


EXECUTORCH = Arithmetic(lambda _: quantize_dequantize_rows, Int8CacheAttention)


def onnxruntime_arithmetic(int8_cache: Callable[[Rules], PlainAttention]) -> Arithmetic:
    """onnxruntime's: activations in the blocks of the weights they meet. The cache's scales are the file's own."""
    return Arithmetic(lambda matrix: functools.partial(quantize_dequantize_blocks, block=block_size(matrix)), int8_cache)


def reference_decoder(weights: ModelWeights, context: int, arithmetic: Arithmetic = EXECUTORCH) -> Decoder:
    """A Decoder in float32 that computes with the recipe's codes, scales and int8 activations.

    It holds a byte a quantized parameter, and four a float32 one.
    """
    spec, plan = weights.recognised.decoder, weights.plan
    blocks = [_block(weights, number, arithmetic) for number in range(len(plan.blocks))]
    with torch.device("meta"):
        head = Head(spec)
    _fill(head, weights, "head.", arithmetic)
    rules = attention_rules(spec, plan.blocks, plan.schedule)
    quantized_cache = weights.recipe.kv.dtype == "int8"
    return Decoder(
        spec,
        plan.schedule,
        context,
        embedding=_table(weights, EMBEDDING),
        entry=_entry(weights, arithmetic) if has_entry(spec) else None,
        blocks=blocks,
        rotary=[RotaryTables(rope, context) for rope in spec.ropes],
        attend=arithmetic.int8_cache(rules) if quantized_cache else PlainAttention(rules),
        remember=PlainColumns(spec) if spec.conv_kernel else None,
        head=head,
    ).eval()


@contextlib.contextmanager
def float_activations(decoder: Reference) -> Iterator[None]:
    """Let a decoder compute with its quantized weights and unrounded activations."""
    linears = [module for module in decoder.modules() if isinstance(module, DynamicInt8Linear)]
    rounding = [linear.activations for linear in linears]
    for linear in linears:
        linear.activations = lambda x: x
    yield
    for linear, activations in zip(linears, rounding, strict=True):
        linear.activations = activations


def reference_rwkv(weights: ModelWeights, arithmetic: Arithmetic = EXECUTORCH) -> RwkvDecoder:
    """reference_decoder for RWKV."""
    spec = weights.recognised.spec
    assert isinstance(spec, RwkvSpec)
    with torch.device("meta"):
        blocks = [RwkvBlock(spec) for _ in weights.plan.blocks]
        entry, head = nn.ModuleDict({"norm": nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)}), RwkvHead(spec)
    for number, block in enumerate(blocks):
        _fill(block, weights, f"blocks.{number}.", arithmetic)
    _fill(entry, weights, "embedding.", arithmetic)
    _fill(head, weights, "head.", arithmetic)
    embedding = _table(weights, EMBEDDING)
    model = RwkvDecoder(spec, weights.plan.schedule, embedding=embedding, norm=entry["norm"], blocks=blocks, head=head)
    return model.eval()


def reference_model(weights: ModelWeights, context: int, arithmetic: Arithmetic = EXECUTORCH) -> Reference:
    """The reference of whatever family a checkpoint is."""
    recurrent = isinstance(weights.recognised.spec, RwkvSpec)
    return reference_rwkv(weights, arithmetic) if recurrent else reference_decoder(weights, context, arithmetic)


def _block(weights: ModelWeights, number: int, arithmetic: Arithmetic) -> Block | ConvBlock:
    spec = weights.recognised.decoder
    kind = spec.blocks[weights.plan.blocks[number]]
    block: Block | ConvBlock
    with torch.device("meta"):
        ffn = FeedForward(spec, kind)
        block = ConvBlock(ShortConv(spec), ffn) if kind.mixer == "conv" else Block(AttentionInput(spec, kind), ffn, kind.rope)
    _fill(block, weights, f"blocks.{number}.", arithmetic)
    return block


def _entry(weights: ModelWeights, arithmetic: Arithmetic) -> Entry:
    with torch.device("meta"):
        entry = Entry(weights.recognised.decoder)
    if entry.positions is not None:
        entry.positions = _table(weights, POSITIONS)
    _fill(entry, weights, "embedding.", arithmetic)
    return entry


def _fill(piece: nn.Module, weights: ModelWeights, prefix: str, arithmetic: Arithmetic) -> None:
    """Give every place in a piece its weight: norms and biases as they are, matrices at the recipe's precision."""
    for name, module in list(piece.named_modules()):
        for parameter, empty in list(module.named_parameters(recurse=False)):
            if not empty.is_meta:
                continue  # the position table, which is no part of the entry by name
            source = weights.source_of(f"{prefix}{name}.{parameter}")
            matrix = weights.matrices.get(source)
            if matrix is None or matrix.precision.bits == 32:
                value = weights.float32(source)
                setattr(module, parameter, nn.Parameter(value, requires_grad=False))
        if isinstance(module, nn.Linear) and module.weight.is_meta:
            source = weights.source_of(f"{prefix}{name}.weight")
            activations = arithmetic.activations(weights.matrices[source])
            piece.set_submodule(name, DynamicInt8Linear(weights.quantized(source), module.bias, activations))


def _table(weights: ModelWeights, name: str) -> nn.Module:
    if weights.matrices[name].precision.bits == 32:
        return nn.Embedding.from_pretrained(weights.float32(name))
    return QuantizedEmbedding(weights.quantized(name))


def reference_logits(decoder: Reference, tokens: list[int]) -> torch.Tensor:
    """Logits of every position in one uncached pass, float32 [T, vocab]."""
    if isinstance(decoder, Decoder):
        assert isinstance(decoder.attend, PlainAttention)
        decoder.attend.forget()
    with torch.no_grad():
        stream = decoder.hidden(torch.tensor([tokens]), torch.zeros(1, dtype=torch.int64))
        return decoder.head(stream)[0]
