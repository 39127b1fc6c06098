"""The reference with the numbers a float16 file holds, and no others: what a Core ML package is held against."""

from __future__ import annotations

import dataclasses
import math

import torch

from mobile_export.model.attention import PlainAttention
from mobile_export.model.attention_rule import temperature
from mobile_export.model.decoder import Decoder, Head
from mobile_export.model.entry import Entry
from mobile_export.model.norms import RmsNorm
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.quantized_linear import DynamicInt8Linear, QuantizedEmbedding
from mobile_export.verify.reference import reference_decoder


def float16_decoder(weights: ModelWeights, context: int) -> Decoder:
    """A Decoder that computes in float32, unrounded, with every constant rounded to float16.

    Codes are the recipe's; their scales, norms, biases, tables and factors are what float16 makes of them, and an RMS
    norm's epsilon what it makes of its root.
    """
    decoder = reference_decoder(weights, context)
    for module in decoder.modules():
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if value.is_floating_point():
                value.data = rounded(value.data)
        if isinstance(module, DynamicInt8Linear):
            module.weight, module.activations = _rounded_scales(module.weight), _unrounded
        elif isinstance(module, QuantizedEmbedding):
            module.table = _rounded_scales(module.table)
        elif isinstance(module, Head | Entry):
            module.scale = float(rounded(torch.tensor(module.scale)))
        elif isinstance(module, RmsNorm):
            module.eps = float(rounded(torch.tensor(module.eps**0.5))) ** 2
    if isinstance(decoder.attend, PlainAttention):
        root = math.sqrt(decoder.spec.head_dim)  # the operator's own; a rule's scale is a factor beside it
        factors = [float(rounded(torch.tensor(rule.scale * root))) / root for rule in decoder.attend.rules]
        rules = zip(decoder.attend.rules, factors, strict=True)
        decoder.attend = RoundedTemperatures([dataclasses.replace(rule, scale=scale) for rule, scale in rules])
    return decoder


class RoundedTemperatures(PlainAttention):
    """PlainAttention whose query temperatures come from a table in float16."""

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        rule = self.rules[slot]
        if rule.query_temperature is not None:
            exact = temperature(rule, torch.arange(start, start + query.shape[1]))
            query = query * (rounded(exact) / exact)
        return super().forward(slot, query, key, value, start)


def rounded(value: torch.Tensor) -> torch.Tensor:
    """What float16 keeps of float32 values."""
    return value.half().float()


def _rounded_scales(weight: QuantizedWeight) -> QuantizedWeight:
    return dataclasses.replace(weight, scales=rounded(weight.scales))


def _unrounded(x: torch.Tensor) -> torch.Tensor:
    return x
