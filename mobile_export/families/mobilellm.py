"""MobileLLM and MobileLLM-LS, 125M to 1.5B, as the Hub has them (`model_type: mobilellm`).

Unusual: `tie_word_embeddings` is false in every file, and the tie is `share_embedding`; under `layer_sharing` each
stored block runs twice in a row. With `share_embedding` the released code builds no head, so a stored one is unused.
The GitHub repository's configs say `model_type: llama` and hold neither key: they are read by llama.py, and
`--schedule immediate` says what their command line said. A llama config that does hold one of the keys is read here.
Source: facebookresearch/MobileLLM, `utils/modeling_llama.py` (`share_embedding` defaults to false) and the Hub's
MobileLLMConfig (to true).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families import llama
from mobile_export.families.config import flag
from mobile_export.families.spec import Recognised, SharingFlags

MODEL_TYPES = ("mobilellm",)


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config says `mobilellm`, or `llama` with one of MobileLLM's sharing keys."""
    keyed = "share_embedding" in config or "layer_sharing" in config
    return config.get("model_type") in MODEL_TYPES or (config.get("model_type") in llama.MODEL_TYPES and keyed)


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a Hub-style MobileLLM checkpoint: llama's graph and tensor names, MobileLLM's own flags.

    Raises:
        InputError: as llama.read, or a sharing flag that is neither true nor false.
    """
    as_llama = llama.read(checkpoint)
    shared = flag(checkpoint.config, "share_embedding", checkpoint.config["model_type"] in MODEL_TYPES)
    repeated = flag(checkpoint.config, "layer_sharing", False)
    said = shared or "share_embedding" in checkpoint.config
    flags = SharingFlags(
        tied=(f"share_embedding: {str(shared).lower()}", shared) if said else as_llama.flags.tied,
        head_is_built=not shared,
        repeats=2 if repeated else 1,
        repeats_flag="layer_sharing: true" if repeated else "",
    )
    return dataclasses.replace(as_llama, spec=dataclasses.replace(as_llama.spec, family="mobilellm"), flags=flags)
