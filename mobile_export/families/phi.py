"""Phi-1, Phi-1.5 and Phi-2 (`phi`).

Unusual: one norm serves attention and feed-forward, which are added in parallel; part of each head is rotated; the head
has a bias.
"""

from __future__ import annotations

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import activation, flag, number, positive_int, prefix_of, tie
from mobile_export.families.dimensions import read_dimensions
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import Weights, feed_forward, head, norm, output, query_key_value, table

MODEL_TYPES = ("phi",)
IGNORED = (".rotary_emb.inv_freq",)


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a Phi checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another.
    """
    config = checkpoint.config
    dimensions = read_dimensions(checkpoint, config)
    kind = BlockSpec(qk_norm="layer" if flag(config, "qk_layernorm", False) else "none")
    spec = DecoderSpec(
        family="phi",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=positive_int(config, "intermediate_size"),
        max_position_embeddings=positive_int(config, "max_position_embeddings", 2048),
        norm_eps=number(config, "layer_norm_eps", 1e-5),
        hidden_act=activation(config, "hidden_act", "gelu_new"),
        ropes=(read_rope(config, dimensions["head_dim"], partial=0.5),),
        blocks=(kind,) * dimensions["num_hidden_layers"],
        norm="layer",
        parallel_residual=True,
        gated=False,
        qkv_bias=True,
        o_bias=True,
        ffn_bias=True,
        head_bias=True,
    )
    ignored = tuple(name for name in checkpoint.tensors if name.endswith(IGNORED))
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, False), ignored)


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, "model.")
    weights = table(spec, f"{prefix}embed_tokens.weight")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        weights |= norm(f"{ours}.attention.norm", f"{theirs}.input_layernorm", spec)
        weights |= query_key_value(spec, i, {part: f"{theirs}.self_attn.{part}_proj" for part in "qkv"})
        if spec.blocks[i].qk_norm != "none":
            for part in "qk":
                weights |= norm(f"{ours}.attention.{part}_norm", f"{theirs}.self_attn.{part}_layernorm", spec, spec.head_dim)
        weights |= output(spec, i, f"{theirs}.self_attn.dense")
        weights |= norm(f"{ours}.ffn.norm", f"{theirs}.input_layernorm", spec)
        weights |= feed_forward(spec, i, {"up": f"{theirs}.mlp.fc1", "down": f"{theirs}.mlp.fc2"})
    return weights | norm("head.norm", f"{prefix}final_layernorm", spec) | head(spec, checkpoint.tensors)
