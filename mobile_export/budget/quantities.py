"""Sizes, shares and times as people type them: "6GB", "512MiB", "10%", "1s", read strictly and within what makes sense."""

from __future__ import annotations

import math
import re

from mobile_export.errors import UsageError

BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50}
DRAM = {**BYTES, "mb": 2**20, "gb": 2**30, "tb": 2**40, "pb": 2**50}  # chips hold powers of two, and are sold as GB
SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0}
LEAST_DRAM, MOST_DRAM = 2**28, 2**37  # 256 MB to 128 GB: outside of it somebody mistyped


def read_bytes(option: str, text: str) -> int:
    """A size: MB is 10**6 bytes, MiB is 2**20.

    >>> read_bytes("--max-memory", "600MB"), read_bytes("--max-memory", "512 MiB")
    (600000000, 536870912)

    Raises:
        UsageError: no number with a unit, or nothing a phone could be asked for.
    """
    return round(_within(option, text, _read(option, text, BYTES, "512MiB"), 1, MOST_DRAM, "1 byte and 128 GiB"))


def read_dram(text: str) -> int:
    """The DRAM of a phone as it is sold: 6GB and 6GiB are both 6 * 2**30 bytes.

    >>> read_dram("6GB") == read_dram("6 gib") == 6 * 2**30
    True

    Raises:
        UsageError: no number with a unit, or no phone's.
    """
    return round(_within("--dram", text, _read("--dram", text, DRAM, "6GB"), LEAST_DRAM, MOST_DRAM, "256MB and 128GB"))


def read_share(text: str) -> float:
    """A share of the DRAM.

    >>> read_share("10%"), read_share("0.1")
    (0.1, 0.1)

    Raises:
        UsageError: not above 0, above the whole, or no number.
    """
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(%?)", text.strip())
    if not found:
        raise UsageError(f"--share {text}", "no share", "write 10% or 0.1")
    value = float(found[1]) / (100 if found[2] else 1)
    return _within("--share", text, value, 1e-6, 1, "0 (exclusive) and 100%")


def read_seconds(option: str, text: str) -> float:
    """A time.

    >>> read_seconds("--max-ttft", "800ms"), read_seconds("--max-ttft", "1.5 s")
    (0.8, 1.5)

    Raises:
        UsageError: no number with a unit, not above 0, or more than an hour.
    """
    return _within(option, text, _read(option, text, SECONDS, "800ms"), 1e-6, 3600, "0 (exclusive) and an hour")


def _read(option: str, text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([a-zA-Z]+)", text.strip())
    unit = units.get(found[2].lower()) if found else None
    if not found or unit is None:
        raise UsageError(f"{option} {text}", "no number with a unit", f"write it like {example}")
    return float(found[1]) * unit


def _within(option: str, text: str, value: float, least: float, most: float, bounds: str) -> float:
    if not (math.isfinite(value) and least <= value <= most):
        raise UsageError(f"{option} {text}", f"not between {bounds}", "check the number and its unit")
    return value
