"""A GGUF file's metadata in config.json's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mobile_export.checkpoint.gguf_architectures import ARCHITECTURES, GgufArchitecture
from mobile_export.errors import InputError

CONVERT = "convert the original checkpoint with convert_hf_to_gguf.py, or give its folder"
FRACTIONS = frozenset({"rms_norm_eps", "rope_theta"})  # every other number of a config is a count
# Looked at below rather than copied under another name.
HANDLED_KEYS = frozenset(
    {
        "attention.value_length",
        "expert_count",
        "expert_used_count",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
        "rope.scaling.original_context_length",
    }
)


def find_architecture(where: str, metadata: Mapping[str, Any]) -> GgufArchitecture:
    """The table entry for `general.architecture`.

    Raises:
        InputError: there is none.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(
            where,
            f"architecture {name!r} is not read from GGUF (supported: {', '.join(ARCHITECTURES)})",
            "give the original Hugging Face folder",
        )
    return ARCHITECTURES[name]


def translate_config(
    where: str,
    metadata: Mapping[str, Any],
    architecture: GgufArchitecture,
    tensor_shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Sequence[float] | None,
) -> dict[str, Any]:
    """config.json as the original checkpoint would have had it.

    Args:
        tensor_shapes: by GGUF name; tells what the metadata leaves out (tied head, biases, vocabulary).
        rope_factors: the values of rope_freqs.weight, which llama.cpp computes from Llama 3's rope scaling; each
            divides one inverse frequency.
    Raises:
        InputError: a key is missing, has the wrong type, or is one we do not know.
    """
    prefix = f"{metadata['general.architecture']}."
    stated = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    config: dict[str, Any] = dict(architecture.config)
    for key in sorted(architecture.required - set(stated)):
        raise InputError(where, f"metadata lacks {prefix}{key}", CONVERT)
    for key, value in stated.items():
        if key in architecture.keys:
            read = _fraction if architecture.keys[key] in FRACTIONS else _count
            config[architecture.keys[key]] = read(f"{where}: {prefix}{key}", value)
        elif key == "expert_count" and value:
            raise InputError(where, f"is a mixture of {value} experts, which is not supported", "use a dense model")
        elif key not in architecture.unused | HANDLED_KEYS:
            raise InputError(where, f"metadata key {prefix}{key} is not understood", CONVERT)

    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config.setdefault("rope_theta", 10000.0)
    config.setdefault("vocab_size", tensor_shapes.get("token_embd.weight", (0,))[0])
    head_dim = config["head_dim"]
    value_length = _count(f"{where}: {prefix}attention.value_length", stated.get("attention.value_length", head_dim))
    if value_length != head_dim:
        raise InputError(where, f"heads of {head_dim} keys and {value_length} values differ", CONVERT)
    rotated = _count(f"{where}: {prefix}rope.dimension_count", stated.get("rope.dimension_count", head_dim))
    if rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    config["rope_scaling"] = _rope_scaling(where, stated, rope_factors)
    config["tie_word_embeddings"] = "output.weight" not in tensor_shapes
    config["attention_bias"] = "blk.0.attn_q.bias" in tensor_shapes
    config["mlp_bias"] = "blk.0.ffn_up.bias" in tensor_shapes
    for word in ("bos", "eos"):
        config[f"{word}_token_id"] = token_id(where, metadata, word)
    return config


def token_id(where: str, metadata: Mapping[str, Any], word: str) -> int | None:
    """tokenizer.ggml.<word>_token_id, checked."""
    value = metadata.get(f"tokenizer.ggml.{word}_token_id")
    if value is not None and (type(value) is not int or value < 0):
        raise InputError(where, f"tokenizer.ggml.{word}_token_id is {value!r}, not a token id", CONVERT)
    return value


def _rope_scaling(where: str, stated: Mapping[str, Any], rope_factors: Sequence[float] | None) -> dict[str, Any] | None:
    """config.json's rope_scaling; None is plain rope."""
    key = "rope.scaling.factor" if "rope.scaling.factor" in stated else "rope.scale_linear"
    factor = _fraction(f"{where}: {key}", stated.get(key) or 1.0)  # llama.cpp takes 0 for 1
    kind = stated.get("rope.scaling.type", "linear")  # llama.cpp's default where only a factor is given
    plain = kind == "none" or (kind == "linear" and factor == 1)
    if rope_factors is not None:
        if not plain:
            raise InputError(where, f"has rope_freqs.weight and {kind} rope scaling at once", CONVERT)
        # No config.json says this: Llama 3's four parameters are gone, their effect on each frequency is not.
        return {"rope_type": "frequency_factors", "factors": list(rope_factors)}
    if plain:
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if (original := stated.get("rope.scaling.original_context_length")) is not None:
        scaling["original_max_position_embeddings"] = _count(f"{where}: original_context_length", original)
    return scaling


def _count(where: str, value: object) -> int:
    if isinstance(value, list):
        raise InputError(where, "differs from block to block: not supported", "use a uniform model")
    if type(value) is not int or value <= 0:
        raise InputError(where, f"is {value!r}, not a count", CONVERT)
    return value


def _fraction(where: str, value: object) -> float:
    """A float32 comes back as the decimal it was written from: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise InputError(where, f"is {value!r}, not a positive number", CONVERT)
    return shortest_decimal(value)


def shortest_decimal(value: float) -> float:
    """The float64 of the fewest digits that rounds to this float32.

    >>> shortest_decimal(9.999999747378752e-06)
    1e-05
    """
    import numpy as np

    return float(str(np.float32(value)))
