"""Pythia 14M to 12B, and GPT-NeoX (`gpt_neox`).

Unusual: attention and feed-forward are added in parallel, each with its own norm (`use_parallel_residual`); a quarter of
each head is rotated; the file has query, key and value head by head. Old files call the head `embed_out`, and hold masks
and rotary tables.
"""

from __future__ import annotations

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import activation, flag, number, positive_int, prefix_of, tie
from mobile_export.families.dimensions import read_dimensions
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import Weights, feed_forward, fused, head, norm, output, rows_by_group, table

MODEL_TYPES = ("gpt_neox",)
IGNORED = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a GPT-NeoX checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another.
    """
    config = checkpoint.config
    dimensions = read_dimensions(checkpoint, config, grouped=False)
    renamed = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    rotary = {**config, **{ours: config[theirs] for theirs, ours in renamed.items() if config.get(theirs) is not None}}
    first = f"{prefix_of(checkpoint.tensors, 'gpt_neox.')}layers.0."
    biased = f"{first}attention.dense.bias" in checkpoint.tensors
    spec = DecoderSpec(
        family="gpt_neox",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=positive_int(config, "intermediate_size"),
        max_position_embeddings=positive_int(config, "max_position_embeddings", 2048),
        norm_eps=number(config, "layer_norm_eps", 1e-5),
        hidden_act=activation(config, "hidden_act", "gelu"),
        ropes=(read_rope(rotary, dimensions["head_dim"], partial=0.25),),
        blocks=(BlockSpec(),) * dimensions["num_hidden_layers"],
        norm="layer",
        parallel_residual=flag(config, "use_parallel_residual", True),
        gated=False,
        qkv_bias=biased,
        o_bias=biased,
        ffn_bias=True,
    )
    ignored = tuple(name for name in checkpoint.tensors if name.endswith(IGNORED))
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, False), ignored)


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, "gpt_neox.")
    weights = table(spec, f"{prefix}embed_in.weight")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        weights |= norm(f"{ours}.attention.norm", f"{theirs}.input_layernorm", spec)
        joined, sizes = f"{theirs}.attention.query_key_value", (spec.qkv_size, spec.hidden_size)
        weights |= fused(f"{ours}.attention.qkv", joined, *sizes, rows_by_group(spec), bias=spec.qkv_bias)
        weights |= output(spec, i, f"{theirs}.attention.dense")
        weights |= norm(f"{ours}.ffn.norm", f"{theirs}.post_attention_layernorm", spec)
        weights |= feed_forward(spec, i, {"up": f"{theirs}.mlp.dense_h_to_4h", "down": f"{theirs}.mlp.dense_4h_to_h"})
    named = "embed_out" if "embed_out.weight" in checkpoint.tensors else "lm_head"
    return weights | norm("head.norm", f"{prefix}final_layer_norm", spec) | head(spec, checkpoint.tensors, named)
