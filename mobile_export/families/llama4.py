"""MobileLLM-R1, 140M to 950M: a dense Llama 4 (`llama4_text`). Mixtures of experts are refused.

Unusual: neighbouring channels are rotated together; query and key are normed without a weight after the rotation, in
blocks that rotate; blocks that do not may scale the query by its position instead; blocks may attend within chunks of
the text only. The dense feed-forward's width is `intermediate_size_mlp`. R1's own config carries keys of other families
(`sliding_window`), which nothing reads. `layer_types` naming sliding attention is refused, as transformers does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families import llama
from mobile_export.families.config import CONFIG, flag, number, positive_int, tie
from mobile_export.families.layer_types import CHUNKED, FULL, per_block, rotates
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, Recognised

MODEL_TYPES = ("llama4_text",)
DEFAULTS = {
    "attention_chunk_size": 8192,
    "attn_scale": 0.1,
    "floor_scale": 8192,
    "head_dim": 128,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}
THETA = 500_000.0


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a dense Llama 4 text checkpoint.

    Raises:
        InputError: as llama.read, experts, or a list of layer types or rotations that does not fit.
    """
    config = {**DEFAULTS, **checkpoint.config}
    _refuse_experts(config)
    config["intermediate_size"] = positive_int(config, "intermediate_size_mlp")
    spec = llama.read_spec(
        "llama4_text",
        checkpoint,
        config,
        lambda head_dim: read_rope(config, head_dim, default_theta=THETA, interleaved=True),
        ffn="feed_forward",
    )
    spec = dataclasses.replace(spec, blocks=_blocks(config, spec.num_hidden_layers))
    weights = llama.weight_map(spec, checkpoint.tensors, "feed_forward")
    return Recognised(spec, weights, tie(config, False), llama.ignored(checkpoint.tensors))


def _blocks(config: Mapping[str, Any], layers: int) -> tuple[BlockSpec, ...]:
    rotated = rotates(config, layers)
    types = per_block(config, "layer_types", layers, (FULL, CHUNKED), lambda block: CHUNKED if rotated[block] else FULL)
    normed = flag(config, "use_qk_norm", True)
    tuned = config.get("attn_temperature_tuning", True) not in (False, 0, None)  # 4 in files of the first weeks
    temperature = (number(config, "floor_scale"), number(config, "attn_scale")) if tuned else None
    return tuple(
        BlockSpec(
            rope=0 if turn else None,
            chunk=positive_int(config, "attention_chunk_size") if kind == CHUNKED else None,
            qk_norm="l2" if normed and turn else "none",
            query_temperature=None if turn else temperature,
        )
        for turn, kind in zip(rotated, types, strict=True)
    )


def _refuse_experts(config: Mapping[str, Any]) -> None:
    """`moe_layers` lists the blocks with experts; where it is left out, every `interleave_moe_layer_step`-th has them."""
    listed, step = config.get("moe_layers"), config.get("interleave_moe_layer_step", 1)
    if listed or (listed is None and step != 0):
        said = f"moe_layers is {listed}" if listed else f"interleave_moe_layer_step is {step}"
        raise InputError(CONFIG, f"{said}: a mixture of experts, which is not supported", "use a dense model")
