"""LFM2 350M to 2.6B, dense (`lfm2`).

Unusual: most blocks mix by a gated convolution over three positions instead of attention (`layer_types`, or
`full_attn_idxs` in the first files); `embedding_norm` is the final norm; the feed-forward's width is computed from
`block_ff_dim`: two thirds of it, rounded up to a multiple.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG, flag, number, positive_int, prefix_of, spelled, tie
from mobile_export.families.dimensions import read_dimensions
from mobile_export.families.layer_types import COMPARE, FULL, per_block
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import (
    Weights,
    feed_forward,
    head,
    linear,
    norm,
    output,
    query_key_value,
    table,
    tensor,
)

MODEL_TYPES = ("lfm2",)
CONV = "conv"
THETA = 1_000_000.0


def read(checkpoint: Checkpoint) -> Recognised:
    """Read an LFM2 checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another, or layer types that do not fit the depth.
    """
    config = {"num_key_value_heads": 8, **checkpoint.config}
    dimensions = read_dimensions(checkpoint, config)
    layers = dimensions["num_hidden_layers"]
    spec = DecoderSpec(
        family="lfm2",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=_intermediate_size(config),
        max_position_embeddings=positive_int(config, "max_position_embeddings", 128_000),
        norm_eps=number(config, "norm_eps", 1e-5),
        hidden_act="silu",
        ropes=(read_rope(config, dimensions["head_dim"], default_theta=THETA),),
        blocks=tuple(
            BlockSpec(mixer="conv", rope=None) if kind == CONV else BlockSpec(qk_norm="rms") for kind in _kinds(config, layers)
        ),
        conv_kernel=positive_int(config, "conv_L_cache", 3),
        conv_bias=flag(config, "conv_bias", False),
    )
    said = tie(config, True, spelled(config, "tie_embedding", "tie_word_embeddings"))
    return Recognised(spec, _weight_map(spec, checkpoint), said, ())


def _kinds(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    named = config.get("full_attn_idxs")
    full = range(layers) if named is None else named
    if not isinstance(full, (list, range)):
        raise InputError(CONFIG, f"full_attn_idxs is {full!r}, not a list of block numbers", COMPARE)
    return per_block(config, "layer_types", layers, (FULL, CONV), lambda block: FULL if block in full else CONV)


def _intermediate_size(config: Mapping[str, Any]) -> int:
    """Source: transformers `modeling_lfm2.py`, Lfm2MLP."""
    size = positive_int(config, spelled(config, "block_ff_dim", "intermediate_size"))
    if not flag(config, "block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    if "block_ffn_dim_multiplier" in config and config["block_ffn_dim_multiplier"] is None:
        return size
    multiplier = number(config, "block_ffn_dim_multiplier", 1.0)
    if multiplier > 1000:  # of a width the tensors are held against below; int() of infinity would fail before
        raise InputError(CONFIG, f"block_ffn_dim_multiplier is {multiplier}, not a plausible factor", COMPARE)
    size = int(multiplier * size)
    multiple = positive_int(config, "block_multiple_of", 256)
    return multiple * ((size + multiple - 1) // multiple)


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, "model.")
    weights = table(spec, f"{prefix}embed_tokens.weight")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        if spec.blocks[i].mixer == "conv":
            weights |= norm(f"{ours}.conv.norm", f"{theirs}.operator_norm", spec) | _conv(spec, ours, f"{theirs}.conv")
        else:
            attention = f"{theirs}.self_attn"
            weights |= norm(f"{ours}.attention.norm", f"{theirs}.operator_norm", spec)
            weights |= query_key_value(spec, i, {part: f"{attention}.{part}_proj" for part in "qkv"})
            for part in "qk":
                weights |= norm(f"{ours}.attention.{part}_norm", f"{attention}.{part}_layernorm", spec, spec.head_dim)
            weights |= output(spec, i, f"{attention}.out_proj")
        weights |= norm(f"{ours}.ffn.norm", f"{theirs}.ffn_norm", spec)
        parts = {"gate": "w1", "up": "w3", "down": "w2"}
        weights |= feed_forward(spec, i, {part: f"{theirs}.feed_forward.{name}" for part, name in parts.items()})
    return weights | norm("head.norm", f"{prefix}embedding_norm", spec) | head(spec, checkpoint.tensors)


def _conv(spec: DecoderSpec, ours: str, theirs: str) -> Weights:
    hidden, bias = spec.hidden_size, spec.conv_bias
    weights = linear(f"{ours}.conv.in", f"{theirs}.in_proj", 3 * hidden, hidden, bias=bias)
    weights[f"{ours}.conv.kernel"] = tensor(f"{theirs}.conv.weight", hidden, 1, spec.conv_kernel)
    if bias:
        weights[f"{ours}.conv.bias"] = tensor(f"{theirs}.conv.bias", hidden)
    return weights | linear(f"{ours}.ffn.o", f"{theirs}.out_proj", hidden, hidden, bias=bias)
