"""LLaMA-2, Llama 3.2, SmolLM2, and whatever else says `model_type: llama`.

Unusual: biases are decided from the tensors, not from `attention_bias`; MobileLLM's GitHub configs arrive here too
(they say `llama` and hold neither `share_embedding` nor `layer_sharing`), so the tie is left to the tensors.
The families whose files are a Llama's but for a few tensors start from `read_spec` and `weight_map`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import activation, number, positive_int, prefix_of, tie
from mobile_export.families.dimensions import read_dimensions
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised, RopeSpec
from mobile_export.families.weight_map import Weights, feed_forward, head, norm, output, query_key_value, table

MODEL_TYPES = ("llama",)
IGNORED = ("rotary_emb.inv_freq",)


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a llama-shaped checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another; nothing is read from the tensors but their names.
    """
    config = checkpoint.config
    spec = read_spec("llama", checkpoint, config, lambda head_dim: read_rope(config, head_dim))
    return Recognised(spec, weight_map(spec, checkpoint.tensors), tie(config, None), ignored(checkpoint.tensors))


def read_spec(
    family: str, checkpoint: Checkpoint, config: Mapping[str, Any], rope: Callable[[int], RopeSpec], ffn: str = "mlp"
) -> DecoderSpec:
    """The spec of a Llama whose blocks are all alike.

    Args:
        config: config.json, with what the family takes missing keys for.
        rope: head_dim -> the rotation of every block.
    """
    dimensions = read_dimensions(checkpoint, config)
    hidden_act = activation(config, "hidden_act", "silu")
    first = f"{prefix_of(checkpoint.tensors, 'model.')}layers.0."
    return DecoderSpec(
        family=family,
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=positive_int(config, "intermediate_size"),
        max_position_embeddings=positive_int(config, "max_position_embeddings", 2048),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        hidden_act=hidden_act,
        ropes=(rope(dimensions["head_dim"]),),
        blocks=(BlockSpec(),) * dimensions["num_hidden_layers"],
        qkv_bias=f"{first}self_attn.q_proj.bias" in checkpoint.tensors,
        o_bias=f"{first}self_attn.o_proj.bias" in checkpoint.tensors,
        ffn_bias=f"{first}{ffn}.gate_proj.bias" in checkpoint.tensors,
    )


def weight_map(spec: DecoderSpec, tensors: Iterable[str], ffn: str = "mlp") -> Weights:
    """The graph's names -> llama's tensor names, with or without the prefix "model."."""
    names = frozenset(tensors)
    prefix = prefix_of(names, "model.")
    weights = table(spec, f"{prefix}embed_tokens.weight")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        weights |= norm(f"{ours}.attention.norm", f"{theirs}.input_layernorm", spec)
        weights |= query_key_value(spec, i, {part: f"{theirs}.self_attn.{part}_proj" for part in "qkv"})
        if spec.blocks[i].qk_norm == "rms":
            for part in "qk":
                weights |= norm(f"{ours}.attention.{part}_norm", f"{theirs}.self_attn.{part}_norm", spec, spec.head_dim)
        weights |= output(spec, i, f"{theirs}.self_attn.o_proj")
        weights |= norm(f"{ours}.ffn.norm", f"{theirs}.post_attention_layernorm", spec)
        weights |= feed_forward(spec, i, {part: f"{theirs}.{ffn}.{part}_proj" for part in ("gate", "up", "down")})
    return weights | norm("head.norm", f"{prefix}norm", spec) | head(spec, names)


def ignored(tensors: Iterable[str], endings: tuple[str, ...] = IGNORED) -> tuple[str, ...]:
    """Tensors of old files that carry no weight."""
    return tuple(name for name in tensors if name.endswith(endings))
