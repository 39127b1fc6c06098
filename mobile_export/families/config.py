"""Reads single values out of config.json, with an error that names the key."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from mobile_export.errors import InputError
from mobile_export.families.spec import SharingFlags

CONFIG = "config.json"
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}  # transformers' name -> DecoderSpec's: the last three are one function, written in three ways


def positive_int(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """config[key] as an int of at least 1; a missing or null key takes `default`.

    Raises:
        InputError: missing without default, not an int, or below 1.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        what = f"{key} is missing" if value is None else f"{key} is {value!r}, not a positive integer"
        raise InputError(CONFIG, what, "compare it with the config.json the checkpoint was trained with")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """config[key] as a finite float above 0; a missing or null key takes `default`.

    Raises:
        InputError: missing without default, not a number, or not above 0.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        what = f"{key} is missing" if value is None else f"{key} is {value!r}, not a number above 0"
        raise InputError(CONFIG, what, "compare it with the config.json the checkpoint was trained with")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """config[key] as a bool; a missing or null key takes `default`.

    Raises:
        InputError: neither true nor false.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(CONFIG, f"{key} is {value!r}", "write true or false")
    return value


def activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """config[key] as DecoderSpec.hidden_act has it; a missing or null key takes `default`.

    Raises:
        InputError: an activation no decoder here computes.
    """
    value = config.get(key, default) or default
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise InputError(CONFIG, f"{key} {value!r} is not supported", f"supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def tie(config: Mapping[str, Any], default: bool | None, key: str = "tie_word_embeddings") -> SharingFlags:
    """What a config says of the head: config[key], or what transformers takes a missing key for.

    default: None where a missing key says nothing, since not only transformers writes such configs (llama).
    Raises:
        InputError: neither true nor false.
    """
    if config.get(key) is not None:
        return SharingFlags((f"{key}: {str(config[key]).lower()}", flag(config, key, False)))
    return SharingFlags(None if default is None else (f"{key}: {str(default).lower()} by default", default))


def refuse(config: Mapping[str, Any], key: str, then: str) -> None:
    """Refuse a switch that changes the network into one no decoder here computes.

    Raises:
        InputError: config[key] is true, or not a bool.
    """
    if flag(config, key, False):
        raise InputError(CONFIG, f"{key} is true, which is not supported", then)


def spelled(config: Mapping[str, Any], *names: str) -> str:
    """The first of a key's names that the config has a value for; the last where it has none."""
    return next((name for name in names if config.get(name) is not None), names[-1])


def prefix_of(tensors: Iterable[str], *known: str) -> str:
    """The first of the known prefixes that any tensor has; a base model saved by itself has none."""
    names = tuple(tensors)
    return next((prefix for prefix in known if any(name.startswith(prefix) for name in names)), "")
