"""JSON as a format, not as JavaScript: no NaN, no key twice, and every error says where."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from mobile_export.errors import InputError

DAMAGED = "download it again"


def read_file(path: Path) -> bytes:
    """A whole small file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(path.name, f"cannot be read ({error.strerror})", "check its permissions") from None


def parse_object(where: str, content: bytes, then: str = DAMAGED) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        where: file name, for errors.
        content: UTF-8 text.
        then: what the user should do when it is damaged.
    Raises:
        InputError: not UTF-8, not JSON, not an object, a key twice, a number no float64 can hold, or half a character.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InputError(where, f"is not UTF-8 text (byte {error.start})", then) from None
    except json.JSONDecodeError as error:
        raise InputError(where, f"is not JSON (line {error.lineno}: {error.msg})", then) from None
    except RecursionError:
        raise InputError(where, "is not usable JSON (nested too deeply)", then) from None
    except ValueError as error:  # from the hooks below, or an integer of more than 4300 digits
        raise InputError(where, f"is not usable JSON ({error})", then) from None
    if re.search(rb"\\u[dD][89a-fA-F]", content) and _has_half_a_character(value):
        raise InputError(where, "is not usable JSON (half a surrogate pair in a string)", then)
    if not isinstance(value, dict):
        raise InputError(where, f"holds a JSON {type(value).__name__}, not an object", then)
    return value


def _has_half_a_character(value: object) -> bool:
    """Whether a string holds a surrogate without its partner, which "\\ud800" spells and no UTF-8 can."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {twice!r} twice")
    return values


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is too large")
    return number
