"""Reads single values out of config.json, with an error that names the key."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mobile_export.errors import InputError

CONFIG = "config.json"


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
