"""Rotary frequencies from every dialect of config.json: plain, linear, llama3, longrope, and a GGUF file's factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG, number, positive_int
from mobile_export.families.spec import RopeSpec

ORIGINAL = "original_max_position_embeddings"


def read_rope(
    config: Mapping[str, Any],
    head_dim: int,
    *,
    default_theta: float = 10_000.0,
    partial: float | None = None,
    interleaved: bool = False,
    kinds: tuple[str, ...] = ("default", "linear", "llama3"),
) -> RopeSpec:
    """Resolve a config's rotary settings to the frequencies the graph multiplies positions with.

    Accepts transformers 5 (`rope_parameters`) and older files (`rope_theta` with `rope_scaling`, `type` or
    `rope_type`). The arithmetic is float32 in transformers' order, so the frequencies are equal to the bit.

    Args:
        partial: share of a head that is rotated where `partial_rotary_factor` is left out; None: the family rotates
            whole heads, and a config that says otherwise is refused.
        kinds: values of rope_type the family knows.
    Raises:
        InputError: odd head_dim, an unknown rope_type, or a scaling value that is missing or not a number.
    Source: transformers `modeling_rope_utils.py`; llama3: Llama 3.1's `apply_scaling`; longrope: arXiv:2402.13753.
    """
    import torch

    if head_dim % 2:
        raise InputError(CONFIG, f"head_dim {head_dim} is odd, so channels cannot be rotated in pairs", "check head_dim")
    settings = _settings(config)
    rotated = _rotated(config, settings, head_dim, partial)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    theta = number(settings, "rope_theta", number(config, "rope_theta", default_theta))
    grown = theta ** (torch.arange(0, rotated, 2, dtype=torch.int64).float() / rotated)
    inverse, attention_factor = 1.0 / grown, 1.0
    if kind == "frequency_factors":  # how the GGUF reader hands on rope_freqs.weight
        inverse = inverse / torch.tensor(_factors(settings, "factors", kind, len(inverse)), dtype=torch.float32)
    elif kind not in kinds:
        raise InputError(CONFIG, f"rope_type {kind!r} is not supported", f"supported: {', '.join(kinds)}")
    elif kind == "linear":
        inverse = inverse / number(settings, "factor")
    elif kind == "llama3":
        inverse = _llama3(inverse, settings)
    elif kind == "longrope":
        factors = torch.tensor(_factors(settings, "short_factor", kind, len(inverse)), dtype=torch.float32)
        inverse, attention_factor = 1.0 / (factors * grown), _longrope_attention(config, settings)
    if not torch.isfinite(inverse).all():
        raise InputError(CONFIG, "a rotary frequency is not finite in float32", "check rope_theta and rope_scaling")
    return RopeSpec(tuple(inverse.tolist()), attention_factor, interleaved)


def longrope_original(config: Mapping[str, Any]) -> int | None:
    """The context a longrope model's short factors serve; None where the config has another rope_type."""
    settings = _settings(config)
    if (settings.get("rope_type") or settings.get("type")) != "longrope":
        return None
    given = config if config.get(ORIGINAL) is not None else settings
    return positive_int(given, ORIGINAL)


def _rotated(config: Mapping[str, Any], settings: Mapping[str, Any], head_dim: int, partial: float | None) -> int:
    """How many channels of a head are rotated."""
    given = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial is None:
        if (given or 1) != 1:
            raise InputError(CONFIG, f"partial_rotary_factor is {given!r}, this family rotates whole heads", "check model_type")
        return head_dim
    share = number({"partial_rotary_factor": given}, "partial_rotary_factor", partial)
    rotated = int(head_dim * min(share, 100))  # of infinity there is no int
    if share > 1 or rotated < 2 or rotated % 2:
        what = f"partial_rotary_factor {share} of head_dim {head_dim} are {rotated} channels"
        raise InputError(CONFIG, what, "check both: channels are rotated in pairs")
    return rotated


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key) or {}
        if not isinstance(given, Mapping):
            raise InputError(CONFIG, f"{key} is {given!r}, not an object", 'write {"rope_type": ...} or null')
        settings |= given
    return settings


def _factors(settings: Mapping[str, Any], key: str, kind: str, count: int) -> list[float]:
    factors = settings.get(key)
    if not isinstance(factors, list) or len(factors) != count:
        held = f"{len(factors)} {key} values" if isinstance(factors, list) else f"no {key}"
        raise InputError(CONFIG, f"rope_type {kind!r} has {held} for {count} frequencies", "check rope_scaling")
    return [number({key: factor}, key) for factor in factors]


def _longrope_attention(config: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    """What longrope multiplies cos and sin with, however short the text: from how far the context was extended."""
    if settings.get("attention_factor") is not None:
        return number(settings, "attention_factor")
    original = longrope_original(config)
    assert original
    if original == 1:
        raise InputError(CONFIG, f"{ORIGINAL} is 1, from which no context grows", "check rope_scaling")
    factor = number(settings, "factor", positive_int(config, "max_position_embeddings") / original)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _llama3(inverse: Any, settings: Mapping[str, Any]) -> Any:
    """Slow the long waves by `factor`, keep the short ones, and blend between the two cut-offs."""
    import torch

    factor, old = number(settings, "factor"), number(settings, "original_max_position_embeddings")
    low, high = number(settings, "low_freq_factor"), number(settings, "high_freq_factor")
    if high <= low:
        raise InputError(CONFIG, f"high_freq_factor {high} is not above low_freq_factor {low}", "check rope_scaling")
    wavelength = 2 * math.pi / inverse
    smooth = (old / wavelength - low) / (high - low)
    blended = (1 - smooth) * inverse / factor + smooth * inverse
    slowed = torch.where(wavelength > old / low, inverse / factor, inverse)
    medium = (wavelength >= old / high) & (wavelength <= old / low)
    return torch.where(medium, blended, slowed)
