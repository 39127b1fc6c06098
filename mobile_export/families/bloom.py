"""BLOOM 560M to 176B (`bloom`).

Unusual: no positions but ALiBi; the embedding is normed; the file has query, key and value head by head; nothing in the
config limits the context but the `seq_length` of some. The vocabulary of 250,880 is near half of the 560M's weights.
"""

from __future__ import annotations

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import number, positive_int, prefix_of, refuse, spelled, tie
from mobile_export.families.dimensions import read_dimensions
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import Weights, feed_forward, fused, head, norm, output, rows_by_group, table

MODEL_TYPES = ("bloom",)


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a BLOOM checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another, or the residual taken after the norm.
    """
    config = checkpoint.config
    refuse(config, "apply_residual_connection_post_layernorm", "use a checkpoint trained without it")
    names = {
        "hidden_size": spelled(config, "n_embed", "hidden_size"),
        "num_hidden_layers": spelled(config, "n_layer", "num_hidden_layers"),
        "num_attention_heads": spelled(config, "n_head", "num_attention_heads"),
    }
    dimensions = read_dimensions(checkpoint, config, names, grouped=False)
    spec = DecoderSpec(
        family="bloom",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=4 * dimensions["hidden_size"],
        max_position_embeddings=positive_int(config, "seq_length", 2048),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        hidden_act="gelu_tanh",
        ropes=(),
        blocks=(BlockSpec(rope=None),) * dimensions["num_hidden_layers"],
        norm="layer",
        embedding_norm=True,
        alibi="bloom",
        gated=False,
        qkv_bias=True,
        o_bias=True,
        ffn_bias=True,
    )
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, True), ())


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, "transformer.")
    weights = table(spec, f"{prefix}word_embeddings.weight")
    weights |= norm("embedding.norm", f"{prefix}word_embeddings_layernorm", spec)
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}h.{i}"
        weights |= norm(f"{ours}.attention.norm", f"{theirs}.input_layernorm", spec)
        joined, sizes = f"{theirs}.self_attention.query_key_value", (spec.qkv_size, spec.hidden_size)
        weights |= fused(f"{ours}.attention.qkv", joined, *sizes, rows_by_group(spec), bias=True)
        weights |= output(spec, i, f"{theirs}.self_attention.dense")
        weights |= norm(f"{ours}.ffn.norm", f"{theirs}.post_attention_layernorm", spec)
        weights |= feed_forward(spec, i, {"up": f"{theirs}.mlp.dense_h_to_4h", "down": f"{theirs}.mlp.dense_4h_to_h"})
    return weights | norm("head.norm", f"{prefix}ln_f", spec) | head(spec, checkpoint.tensors)
