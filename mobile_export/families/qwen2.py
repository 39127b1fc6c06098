"""Qwen2 and Qwen2.5 (`qwen2`).

Unusual: query, key and value have a bias and the output has none, and no key of the config says so; `sliding_window`
stands in every config and counts only where `use_sliding_window` is true.
"""

from __future__ import annotations

import dataclasses

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families import llama
from mobile_export.families.config import tie
from mobile_export.families.layer_types import qwen_windows
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import BlockSpec, Recognised

MODEL_TYPES = ("qwen2",)
DEFAULTS = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096}


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a Qwen2 checkpoint.

    Raises:
        InputError: as llama.read, or a list of layer types that does not fit.
    """
    config = {**DEFAULTS, **checkpoint.config}
    spec = llama.read_spec("qwen2", checkpoint, config, lambda head_dim: read_rope(config, head_dim))
    windows = qwen_windows(config, spec.num_hidden_layers)
    spec = dataclasses.replace(spec, blocks=tuple(BlockSpec(window=window) for window in windows))
    weights = llama.weight_map(spec, checkpoint.tensors)
    return Recognised(spec, weights, tie(config, False), llama.ignored(checkpoint.tensors))
