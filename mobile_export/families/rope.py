"""Rotary frequencies from every dialect of config.json: plain, linear, llama3, and a GGUF file's factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG, number
from mobile_export.families.spec import RopeSpec


def read_rope(config: Mapping[str, Any], head_dim: int, *, default_theta: float = 10_000.0) -> RopeSpec:
    """Resolve a config's rotary settings to the frequencies the graph multiplies positions with.

    Accepts transformers 5 (`rope_parameters`) and older files (`rope_theta` with `rope_scaling`, `type` or
    `rope_type`). The arithmetic is float32 in transformers' order, so the frequencies are equal to the bit.

    Raises:
        InputError: odd head_dim, an unknown rope_type, or a scaling value that is missing or not a number.
    Source: transformers `modeling_rope_utils.py`; llama3: Llama 3.1's `apply_scaling`.
    """
    import torch

    if head_dim % 2:
        raise InputError(CONFIG, f"head_dim {head_dim} is odd, so channels cannot be rotated in pairs", "check head_dim")
    settings = _settings(config)
    rotated = settings.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1
    if rotated != 1:
        raise InputError(CONFIG, f"partial_rotary_factor is {rotated!r}, this family rotates whole heads", "check model_type")
    kind = settings.get("rope_type") or settings.get("type") or "default"
    theta = number(settings, "rope_theta", number(config, "rope_theta", default_theta))
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if kind == "linear":
        inverse = inverse / number(settings, "factor")
    elif kind == "llama3":
        inverse = _llama3(inverse, settings)
    elif kind == "frequency_factors":  # how the GGUF reader hands on rope_freqs.weight
        inverse = inverse / torch.tensor(_factors(settings, len(inverse)), dtype=torch.float32)
    elif kind != "default":
        known = "default, linear, llama3"
        raise InputError(CONFIG, f"rope_type {kind!r} is not supported", f"supported: {known}")
    return RopeSpec(tuple(inverse.tolist()))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key) or {}
        if not isinstance(given, Mapping):
            raise InputError(CONFIG, f"{key} is {given!r}, not an object", 'write {"rope_type": ...} or null')
        settings |= given
    return settings


def _factors(settings: Mapping[str, Any], count: int) -> list[float]:
    factors = settings.get("factors")
    if not isinstance(factors, list) or len(factors) != count:
        held = f"{len(factors)} factors" if isinstance(factors, list) else "no factors"
        raise InputError(
            CONFIG, f"rope_type 'frequency_factors' with {held} for {count} frequencies", "check rope_freqs.weight"
        )
    return [number({"factor": factor}, "factor") for factor in factors]


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
