"""The same numbers evaluated in plain PyTorch: what a quantized artifact is held against.

Shares the Decoder's wiring with the emitters, and neither their kernels nor their packing. That the wiring is right is
shown against transformers, in float32 (oracle.py and the tests).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mobile_export.emit.onnx.blocks import block_size
from mobile_export.families.spec import RwkvSpec
from mobile_export.model.attention import PlainAttention
from mobile_export.model.attention_rule import AttentionRule, attention_rules
from mobile_export.model.decoder import Block, Decoder
from mobile_export.model.rotary import RotaryTables
from mobile_export.model.rwkv import RwkvDecoder
from mobile_export.model.short_conv import PlainColumns
from mobile_export.quantize import pieces
from mobile_export.quantize.activations import quantize_dequantize_rows
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.pieces import Linears, Tables, float_linears, float_tables
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.quantized_linear import (
    Activations,
    DynamicInt8Linear,
    QuantizedEmbedding,
    quantize_dequantize_blocks,
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
    linears, tables = _linears(weights, arithmetic), _tables(weights)
    rules = attention_rules(spec, plan.blocks, plan.schedule)
    quantized_cache = weights.recipe.kv.dtype == "int8"
    return Decoder(
        spec,
        plan.schedule,
        context,
        embedding=tables(EMBEDDING),
        unfold=weights.unfold(),
        entry=pieces.entry(weights, linears, tables),
        blocks=[cast("Block", pieces.stored_block(weights, number, linears)) for number in range(len(plan.blocks))],
        rotary=[RotaryTables(rope, context) for rope in spec.ropes],
        attend=arithmetic.int8_cache(rules) if quantized_cache else PlainAttention(rules),
        remember=PlainColumns(spec) if spec.conv_kernel else None,
        head=pieces.head(weights, linears),
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
    linears = _linears(weights, arithmetic)
    return RwkvDecoder(
        spec,
        weights.plan.schedule,
        embedding=_tables(weights)(EMBEDDING),
        unfold=weights.unfold(),
        norm=pieces.rwkv_norm(weights, spec),
        blocks=[pieces.stored_block(weights, number, linears) for number in range(len(weights.plan.blocks))],
        head=pieces.head(weights, linears),
    ).eval()


def reference_model(weights: ModelWeights, context: int, arithmetic: Arithmetic = EXECUTORCH) -> Reference:
    """The reference of whatever family a checkpoint is."""
    recurrent = isinstance(weights.recognised.spec, RwkvSpec)
    return reference_rwkv(weights, arithmetic) if recurrent else reference_decoder(weights, context, arithmetic)


def _linears(weights: ModelWeights, arithmetic: Arithmetic) -> Linears:
    """Linears over the recipe's codes, and float32 ones where it keeps a matrix in float32."""
    plain = float_linears(weights)

    def linear(name: str, bias: torch.Tensor | None) -> nn.Module:
        matrix = weights.matrices[name]
        if matrix.precision.bits == 32:
            return plain(name, bias)
        return DynamicInt8Linear(weights.quantized(name), bias, arithmetic.activations(matrix))

    return linear


def _tables(weights: ModelWeights) -> Tables:
    plain = float_tables(weights)
    return lambda name: (
        plain(name) if weights.matrices[name].precision.bits == 32 else QuantizedEmbedding(weights.quantized(name))
    )


def reference_logits(decoder: Reference, tokens: list[int]) -> torch.Tensor:
    """Logits of every position in one uncached pass, float32 [T, vocab]."""
    return _logits(decoder, tokens, len(tokens))


def reference_last(decoder: Reference, tokens: list[int]) -> torch.Tensor:
    """Logits of the last position in one uncached pass, float32 [vocab]: of a text whose logits would fill the memory."""
    return _logits(decoder, tokens, 1)[0]


def _logits(decoder: Reference, tokens: list[int], positions: int) -> torch.Tensor:
    if isinstance(decoder, Decoder):
        assert isinstance(decoder.attend, PlainAttention)
        decoder.attend.forget()
    with torch.no_grad():
        stream = decoder.hidden(torch.tensor([tokens]), torch.zeros(1, dtype=torch.int64))
        return decoder.head(stream[:, -positions:])[0]
