"""The same numbers evaluated in plain PyTorch: what a quantized artifact is held against.

Shares the Decoder's wiring with the emitters, and neither their kernels nor their packing. That the wiring is right is
shown against transformers, in float32 (oracle.py and the tests).
"""

from __future__ import annotations

import torch
from torch import nn

from mobile_export.families.spec import RwkvSpec
from mobile_export.model.attention import PlainAttention
from mobile_export.model.attention_rule import attention_rules
from mobile_export.model.decoder import AttentionInput, Block, ConvBlock, Decoder, FeedForward, Head
from mobile_export.model.entry import Entry, has_entry
from mobile_export.model.rotary import RotaryTables
from mobile_export.model.rwkv import RwkvBlock, RwkvDecoder, RwkvHead
from mobile_export.model.short_conv import PlainColumns, ShortConv
from mobile_export.quantize.weights import EMBEDDING, POSITIONS, ModelWeights
from mobile_export.verify.quantized_linear import DynamicInt8Linear, QuantizedEmbedding, quantize_dequantize_rows


class Int8CacheAttention(PlainAttention):
    """PlainAttention over query, key and value that went through int8, one scale per token and head."""

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        query, key, value = (quantize_dequantize_rows(x) for x in (query, key, value))
        return super().forward(slot, query, key, value, start)


def reference_decoder(weights: ModelWeights, context: int) -> Decoder:
    """A Decoder in float32 that computes with the recipe's codes, scales and int8 activations.

    It holds a byte a quantized parameter, and four a float32 one.
    """
    spec, plan = weights.recognised.decoder, weights.plan
    blocks = [_block(weights, number) for number in range(len(plan.blocks))]
    with torch.device("meta"):
        head = Head(spec)
    _fill(head, weights, "head.")
    rules = attention_rules(spec, plan.blocks, plan.schedule)
    quantized_cache = weights.recipe.kv.dtype == "int8"
    return Decoder(
        spec,
        plan.schedule,
        context,
        embedding=_table(weights, EMBEDDING),
        entry=_entry(weights) if has_entry(spec) else None,
        blocks=blocks,
        rotary=[RotaryTables(rope, context) for rope in spec.ropes],
        attend=Int8CacheAttention(rules) if quantized_cache else PlainAttention(rules),
        remember=PlainColumns(spec) if spec.conv_kernel else None,
        head=head,
    ).eval()


def reference_rwkv(weights: ModelWeights) -> RwkvDecoder:
    """reference_decoder for RWKV."""
    spec = weights.recognised.spec
    assert isinstance(spec, RwkvSpec)
    with torch.device("meta"):
        blocks = [RwkvBlock(spec) for _ in weights.plan.blocks]
        entry, head = nn.ModuleDict({"norm": nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)}), RwkvHead(spec)
    for number, block in enumerate(blocks):
        _fill(block, weights, f"blocks.{number}.")
    _fill(entry, weights, "embedding.")
    _fill(head, weights, "head.")
    embedding = _table(weights, EMBEDDING)
    model = RwkvDecoder(spec, weights.plan.schedule, embedding=embedding, norm=entry["norm"], blocks=blocks, head=head)
    return model.eval()


def reference_model(weights: ModelWeights, context: int) -> Decoder | RwkvDecoder:
    """The reference of whatever family a checkpoint is."""
    recurrent = isinstance(weights.recognised.spec, RwkvSpec)
    return reference_rwkv(weights) if recurrent else reference_decoder(weights, context)


def _block(weights: ModelWeights, number: int) -> Block | ConvBlock:
    spec = weights.recognised.decoder
    kind = spec.blocks[weights.plan.blocks[number]]
    block: Block | ConvBlock
    with torch.device("meta"):
        ffn = FeedForward(spec, kind)
        block = ConvBlock(ShortConv(spec), ffn) if kind.mixer == "conv" else Block(AttentionInput(spec, kind), ffn, kind.rope)
    _fill(block, weights, f"blocks.{number}.")
    return block


def _entry(weights: ModelWeights) -> Entry:
    with torch.device("meta"):
        entry = Entry(weights.recognised.decoder)
    if entry.positions is not None:
        entry.positions = _table(weights, POSITIONS)
    _fill(entry, weights, "embedding.")
    return entry


def _fill(piece: nn.Module, weights: ModelWeights, prefix: str) -> None:
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
            weight = weights.quantized(weights.source_of(f"{prefix}{name}.weight"))
            piece.set_submodule(name, DynamicInt8Linear(weight, module.bias))


def _table(weights: ModelWeights, name: str) -> nn.Module:
    if weights.matrices[name].precision.bits == 32:
        return nn.Embedding.from_pretrained(weights.float32(name))
    return QuantizedEmbedding(weights.quantized(name))


def reference_logits(decoder: Decoder | RwkvDecoder, tokens: list[int]) -> torch.Tensor:
    """Logits of every position in one uncached pass, float32 [T, vocab]."""
    if isinstance(decoder, Decoder):
        assert isinstance(decoder.attend, PlainAttention)
        decoder.attend.forget()
    with torch.no_grad():
        stream = decoder.hidden(torch.tensor([tokens]), torch.zeros(1, dtype=torch.int64))
        return decoder.head(stream)[0]
