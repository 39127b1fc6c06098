"""SmolLM3 (`smollm3`).

Unusual: every fourth block rotates nothing (`no_rope_layers`, or `no_rope_layer_interval`), and where windows are
switched on it is those blocks that have one.
"""

from __future__ import annotations

import dataclasses

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families import llama
from mobile_export.families.config import flag, tie
from mobile_export.families.layer_types import FULL, SLIDING, rotates, windows
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, Recognised

MODEL_TYPES = ("smollm3",)
DEFAULTS = {"max_position_embeddings": 32768, "num_key_value_heads": 4}
THETA = 2_000_000.0


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a SmolLM3 checkpoint.

    Raises:
        InputError: as llama.read, or a list of layer types or rotations that does not fit.
    """
    config = {**DEFAULTS, **checkpoint.config}
    spec = llama.read_spec("smollm3", checkpoint, config, lambda head_dim: read_rope(config, head_dim, default_theta=THETA))
    rotated = rotates(config, spec.num_hidden_layers)
    sliding = flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None
    seen = windows(
        config if sliding else {**config, "sliding_window": None},
        spec.num_hidden_layers,
        lambda block: SLIDING if sliding and not rotated[block] else FULL,
    )
    blocks = tuple(BlockSpec(rope=0 if turn else None, window=size) for turn, size in zip(rotated, seen, strict=True))
    spec = dataclasses.replace(spec, blocks=blocks)
    weights = llama.weight_map(spec, checkpoint.tensors)
    return Recognised(spec, weights, tie(config, True), llama.ignored(checkpoint.tensors))
