"""Falcon-RW 1B, Falcon 7B and the new architecture of 11B to 180B (`falcon`; `RefinedWeb`, `RefinedWebModel` in old files).

Unusual: three networks under one name. RW adds ALiBi, rounded to bfloat16 and scaled with the scores, and has biases and
a plain residual. 7B rotates, has one key-value head, and adds attention and feed-forward in parallel under one norm.
The new architecture groups queries by their key-value head and has a norm for each of the two (`ln_attn`, `ln_mlp`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import activation, flag, number, positive_int, prefix_of, spelled, tie
from mobile_export.families.dimensions import Dimensions, read_dimensions
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import Weights, feed_forward, fused, head, linear, norm, output, rows_by_group, table

MODEL_TYPES = ("falcon", "RefinedWeb", "RefinedWebModel")
IGNORED = (".rotary_emb.inv_freq",)


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a Falcon checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another.
    """
    config = checkpoint.config
    alibi, biased, new = flag(config, "alibi", False), flag(config, "bias", False), _is_new(config)
    dimensions = _dimensions(checkpoint, config, new)
    spec = DecoderSpec(
        family="falcon",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=positive_int(config, "ffn_hidden_size", 4 * dimensions["hidden_size"]),
        max_position_embeddings=positive_int(config, "max_position_embeddings", 2048),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        hidden_act=activation(config, "activation", "gelu"),
        ropes=() if alibi else (read_rope(config, dimensions["head_dim"]),),
        blocks=(BlockSpec(rope=None if alibi else 0),) * dimensions["num_hidden_layers"],
        norm="layer",
        parallel_residual=new or flag(config, "parallel_attn", True),
        alibi="falcon" if alibi else "none",
        gated=False,
        qkv_bias=biased,
        o_bias=biased,
        ffn_bias=biased,
    )
    ignored = tuple(name for name in checkpoint.tensors if name.endswith(IGNORED))
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, True), ignored)


def _is_new(config: Mapping[str, Any]) -> bool:
    return flag(config, "new_decoder_architecture", config["model_type"] == "RefinedWeb")


def _dimensions(checkpoint: Checkpoint, config: Mapping[str, Any], new: bool) -> Dimensions:
    names = {
        "hidden_size": spelled(config, "n_embed", "hidden_size"),
        "num_hidden_layers": spelled(config, "n_layer", "num_hidden_layers"),
        "num_attention_heads": spelled(config, "n_head", "num_attention_heads"),
        "num_key_value_heads": spelled(config, "n_head_kv", "num_kv_heads"),
    }
    if new:
        return read_dimensions(checkpoint, {**config, "head_dim": None}, names)
    dimensions = read_dimensions(checkpoint, config, names, grouped=False)
    if flag(config, "multi_query", True):
        dimensions["num_key_value_heads"] = 1
    return dimensions


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    config = checkpoint.config
    prefix = prefix_of(checkpoint.tensors, "transformer.")
    joined_in_order = not _is_new(config) and flag(config, "multi_query", True)  # all queries, the key, the value
    norms = _norms(config, spec.parallel_residual)
    weights = table(spec, f"{prefix}word_embeddings.weight")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}h.{i}"
        for place, name in zip(("attention.norm", "ffn.norm"), norms, strict=True):
            weights |= norm(f"{ours}.{place}", f"{theirs}.{name}", spec)
        place, joined = f"{ours}.attention.qkv", f"{theirs}.self_attention.query_key_value"
        sizes, bias = (spec.qkv_size, spec.hidden_size), spec.qkv_bias
        if joined_in_order:
            weights |= linear(place, joined, *sizes, bias=bias)
        else:
            weights |= fused(place, joined, *sizes, rows_by_group(spec), bias=bias)
        weights |= output(spec, i, f"{theirs}.self_attention.dense")
        weights |= feed_forward(spec, i, {"up": f"{theirs}.mlp.dense_h_to_4h", "down": f"{theirs}.mlp.dense_4h_to_h"})
    return weights | norm("head.norm", f"{prefix}ln_f", spec) | head(spec, checkpoint.tensors)


def _norms(config: Mapping[str, Any], parallel: bool) -> tuple[str, str]:
    """The names of the attention's and the feed-forward's norm; one norm may serve both."""
    if not parallel:
        return "input_layernorm", "post_attention_layernorm"
    if _is_new(config) and positive_int(config, "num_ln_in_parallel_attn", 2) == 2:
        return "ln_attn", "ln_mlp"
    return "input_layernorm", "input_layernorm"
