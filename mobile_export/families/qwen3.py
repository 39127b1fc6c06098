"""Qwen3, dense, 0.6B to 32B (`qwen3`).

Unusual: query and key are normed over each head before the rotation; head_dim is 128 whatever the width, so that the
0.6B's query is 2048 wide on a stream of 1024.
"""

from __future__ import annotations

import dataclasses

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families import llama
from mobile_export.families.config import tie
from mobile_export.families.layer_types import qwen_windows
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, Recognised

MODEL_TYPES = ("qwen3",)
DEFAULTS = {"head_dim": 128, "max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096}


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a Qwen3 checkpoint.

    Raises:
        InputError: as llama.read, or a list of layer types that does not fit.
    """
    config = {**DEFAULTS, **checkpoint.config}
    spec = llama.read_spec("qwen3", checkpoint, config, lambda head_dim: read_rope(config, head_dim))
    windows = qwen_windows(config, spec.num_hidden_layers)
    spec = dataclasses.replace(spec, blocks=tuple(BlockSpec(window=window, qk_norm="rms") for window in windows))
    weights = llama.weight_map(spec, checkpoint.tensors)
    return Recognised(spec, weights, tie(config, False), llama.ignored(checkpoint.tensors))
