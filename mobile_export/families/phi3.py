"""Phi-3 and Phi-3.5 mini, Phi-4-mini (`phi3`).

Unusual: query, key and value are one tensor, gate and up another; part of a head may be rotated. Long-context versions
switch from short to long rotary factors where a text outgrows the original context. A graph holds one set of
frequencies: it gets the short ones, and the original context is all it offers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families import llama
from mobile_export.families.config import CONFIG, positive_int, prefix_of, tie
from mobile_export.families.rope import longrope_original, read_rope
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised, WeightSource
from mobile_export.families.take import Rows, Take
from mobile_export.families.weight_map import Weights, tensor

MODEL_TYPES = ("phi3",)
DEFAULTS = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
OLD_NAMES = ("su", "yarn")  # what files of Phi-3's first weeks call longrope


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a Phi-3 checkpoint.

    Raises:
        InputError: as llama.read, or a long-context config without its short factors or its original context.
    """
    config = _with_longrope({**DEFAULTS, **checkpoint.config})
    kinds = ("default", "longrope")
    spec = llama.read_spec("phi3", checkpoint, config, lambda head_dim: read_rope(config, head_dim, partial=1.0, kinds=kinds))
    original = longrope_original(config)
    window = None if config.get("sliding_window") is None else positive_int(config, "sliding_window")
    offered = spec.max_position_embeddings
    spec = dataclasses.replace(
        spec,
        blocks=(BlockSpec(window=window),) * spec.num_hidden_layers,
        max_position_embeddings=min(offered, original or offered),
    )
    weights = _weight_map(spec, checkpoint)
    notes: tuple[str, ...] = ()
    if original and original < offered:
        notes = (
            f"{CONFIG}: beyond {original} of {offered} positions longrope rotates by its long factors; "
            f"a graph holds one set, the short one: {original} positions are all it serves",
        )
    return Recognised(spec, weights, tie(config, False), llama.ignored(checkpoint.tensors), notes)


def _with_longrope(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the old names of longrope brought up to date."""
    for key in ("rope_scaling", "rope_parameters"):
        settings = config.get(key)
        if isinstance(settings, Mapping):
            kind = settings.get("rope_type") or settings.get("type")
            if kind in OLD_NAMES:
                config[key] = {**settings, "rope_type": "longrope"}
            if settings.get("short_mscale") is not None:
                raise InputError(CONFIG, f"{key} holds short_mscale, which is not supported", "use a dense Phi-3")
    return config


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    """llama's map, with the fused tensors in the places of the single ones."""
    weights = llama.weight_map(spec, checkpoint.tensors)
    prefix = prefix_of(checkpoint.tensors, "model.")
    wide = spec.intermediate_size
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        weights[f"{ours}.attention.qkv.weight"] = tensor(f"{theirs}.self_attn.qkv_proj.weight", spec.qkv_size, spec.hidden_size)
        for part, rows in (("gate", Rows(0, wide)), ("up", Rows(wide, 2 * wide))):
            name, shape = f"{theirs}.mlp.gate_up_proj.weight", (2 * wide, spec.hidden_size)
            weights[f"{ours}.ffn.{part}.weight"] = WeightSource((name,), (shape,), (Take(rows=rows),))
    return weights
