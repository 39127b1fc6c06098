"""The Decoder's pieces with a checkpoint's numbers in them. What stands in a Linear's place, the caller decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from mobile_export.families.spec import RwkvSpec
from mobile_export.model.decoder import AttentionInput, Block, ConvBlock, FeedForward, Head
from mobile_export.model.entry import Entry, has_entry
from mobile_export.model.products import FastLinear
from mobile_export.model.rwkv import RwkvBlock, RwkvHead
from mobile_export.model.short_conv import ShortConv
from mobile_export.quantize.recipe import POSITIONS
from mobile_export.quantize.weights import ModelWeights

Linears = Callable[[str, torch.Tensor | None], nn.Module]  # a matrix's name and its bias -> what multiplies with it
Tables = Callable[[str], nn.Module]  # a table's name -> what looks rows up in it
StoredBlock = Block | ConvBlock | RwkvBlock


def float_linears(weights: ModelWeights) -> Linears:
    """Linears in float32, as the checkpoint has them."""
    return lambda name, bias: linear_of(weights.float32(name), bias)


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear in float32 that holds these very tensors."""
    made = FastLinear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = cast("nn.Parameter", bias)
    return made


def float_tables(weights: ModelWeights) -> Tables:
    """Tables in float32, as the checkpoint has them."""
    return lambda name: nn.Embedding.from_pretrained(weights.float32(name))


def stored_block(weights: ModelWeights, number: int, linears: Linears) -> StoredBlock:
    """The stored block of that number."""
    spec = weights.recognised.spec
    block: StoredBlock
    with torch.device("meta"):
        if isinstance(spec, RwkvSpec):
            block = RwkvBlock(spec)
        else:
            kind = spec.blocks[weights.plan.blocks[number]]
            ffn = FeedForward(spec, kind)
            conv = kind.mixer == "conv"
            block = ConvBlock(ShortConv(spec), ffn) if conv else Block(AttentionInput(spec, kind), ffn, kind.rope)
    _fill(block, weights, f"blocks.{number}.", linears)
    return block.eval()


def entry(weights: ModelWeights, linears: Linears, tables: Tables) -> Entry | None:
    """What lies between the token table and the first block, where anything does; not RWKV's, which is a norm alone."""
    if not has_entry(weights.recognised.decoder):
        return None
    with torch.device("meta"):
        made = Entry(weights.recognised.decoder)
    if made.positions is not None:
        made.positions = tables(POSITIONS)
    _fill(made, weights, "embedding.", linears)
    return made.eval()


def rwkv_norm(weights: ModelWeights, spec: RwkvSpec) -> nn.Module:
    """RWKV's norm of the embedded tokens."""
    with torch.device("meta"):
        made = nn.ModuleDict({"norm": nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)})
    _fill(made, weights, "embedding.", float_linears(weights))
    return made["norm"].eval()


def head(weights: ModelWeights, linears: Linears) -> Head | RwkvHead:
    """Residual stream -> logits; the tied table is called for by its own name."""
    spec = weights.recognised.spec
    with torch.device("meta"):
        made = RwkvHead(spec) if isinstance(spec, RwkvSpec) else Head(spec)
    _fill(made, weights, "head.", linears)
    return made.eval()


def _fill(piece: nn.Module, weights: ModelWeights, prefix: str, linears: Linears) -> None:
    """Give every place in a piece its weight: norms and biases as they are, matrices as `linears` has them."""
    for name, module in list(piece.named_modules()):
        matrix = isinstance(module, nn.Linear) and module.weight.is_meta
        for parameter, empty in list(module.named_parameters(recurse=False)):
            # The position table is filled already, and no part of the entry by name.
            if empty.is_meta and not (matrix and parameter == "weight"):
                value = weights.float32(f"{prefix}{name}.{parameter}")
                setattr(module, parameter, nn.Parameter(value, requires_grad=False))
        if matrix:
            bias = cast("torch.Tensor | None", module.bias)
            piece.set_submodule(name, linears(weights.source_of(f"{prefix}{name}.weight"), bias))
