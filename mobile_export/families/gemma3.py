"""Gemma 3, text only: 270M and 1B (`gemma3_text`). The multimodal sizes nest this config and are not read.

Unusual: a norm's weight is stored as w and multiplies as 1 + w; each block has four norms; the embedding is multiplied
by sqrt(hidden_size); five of six blocks see a window only and rotate by frequencies of their own; scores are scaled by
`query_pre_attn_scalar`, not by head_dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families import llama
from mobile_export.families.config import CONFIG, activation, number, positive_int, prefix_of, refuse, tie
from mobile_export.families.layer_types import FULL, SLIDING, windows
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised, RopeSpec, WeightSource
from mobile_export.families.take import Take
from mobile_export.families.weight_map import Weights, norm

MODEL_TYPES = ("gemma3_text",)
DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
THETA = {FULL: 1_000_000.0, SLIDING: 10_000.0}


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a text-only Gemma 3 checkpoint.

    Raises:
        InputError: as llama.read, a list of layer types that does not fit, attention to later positions, capped scores.
    """
    config = {**DEFAULTS, **checkpoint.config}
    refuse(config, "use_bidirectional_attention", "use a causal checkpoint")
    if config.get("attn_logit_softcapping") is not None:  # transformers' Gemma 3 has the key and leaves it unused
        raise InputError(CONFIG, "attn_logit_softcapping is set, which no Gemma 3 was trained with", "write null")
    config["hidden_act"] = activation(config, "hidden_activation", "gelu_pytorch_tanh").replace("gelu_tanh", "gelu_new")
    spec = llama.read_spec("gemma3_text", checkpoint, config, lambda head_dim: _rope(config, FULL, head_dim))
    cap = None if config.get("final_logit_softcapping") is None else number(config, "final_logit_softcapping")
    every = positive_int(config, "sliding_window_pattern", positive_int(config, "_sliding_window_pattern", 6))
    seen = windows(config, spec.num_hidden_layers, lambda block: SLIDING if (block + 1) % every else FULL)
    spec = dataclasses.replace(
        spec,
        ropes=(*spec.ropes, _rope(config, SLIDING, spec.head_dim)),
        blocks=tuple(BlockSpec(rope=0 if window is None else 1, window=window, qk_norm="rms") for window in seen),
        norm_placement="sandwich",
        embedding_scale=spec.hidden_size**0.5,
        attention_scale=number(config, "query_pre_attn_scalar") ** -0.5,
        logit_softcap=cap,
    )
    weights = _weight_map(spec, checkpoint)
    return Recognised(spec, weights, tie(config, True), llama.ignored(checkpoint.tensors))


def _rope(config: Mapping[str, Any], kind: str, head_dim: int) -> RopeSpec:
    """transformers 5 nests the settings by kind of block; before, scaling was the full blocks' alone."""
    nested = config.get("rope_parameters")
    if nested:
        if not isinstance(nested, Mapping) or not set(nested) <= set(THETA):
            raise InputError(CONFIG, "rope_parameters is not one object for each kind of block", f"write {', '.join(THETA)}")
        own: dict[str, Any] = {"rope_parameters": nested.get(kind)}
    elif kind == FULL:
        own = {key: config.get(key) for key in ("rope_theta", "rope_scaling")}
    else:
        own = {"rope_theta": config.get("rope_local_base_freq")}
    return read_rope(own, head_dim, default_theta=THETA[kind])


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    """llama's map, with the four norms under their own names, and one added to each."""
    weights = llama.weight_map(spec, checkpoint.tensors)
    prefix = prefix_of(checkpoint.tensors, "model.")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}.ffn", f"{prefix}layers.{i}"
        weights |= norm(f"{ours}.o_norm", f"{theirs}.post_attention_layernorm", spec)
        weights |= norm(f"{ours}.norm", f"{theirs}.pre_feedforward_layernorm", spec)
        weights |= norm(f"{ours}.down_norm", f"{theirs}.post_feedforward_layernorm", spec)
    plus_one = (Take(value="plus_one"),)
    return {
        name: WeightSource(source.tensors, source.shapes, plus_one) if name.endswith("norm.weight") else source
        for name, source in weights.items()
    }
