"""What config.json says of each block: its kind of attention, its window, whether it rotates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG, flag, positive_int

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
COMPARE = "compare it with the config.json the checkpoint was trained with"


def per_block(
    config: Mapping[str, Any], key: str, layers: int, known: tuple[Any, ...], default: Callable[[int], Any]
) -> tuple[Any, ...]:
    """The first `layers` values of a list in the config; where it is missing, null or empty, default(block).

    Raises:
        InputError: no list, too short a list, or a value not in `known`.
    """
    given = config.get(key) or [default(block) for block in range(layers)]
    if not isinstance(given, list) or len(given) < layers:
        held = f"{len(given)} values" if isinstance(given, list) else f"{given!r}"
        raise InputError(CONFIG, f"{key} has {held} for {layers} blocks", COMPARE)
    strange = [value for value in given[:layers] if value not in known]
    if strange:
        what = f"{key} holds {strange[0]!r}, which this family does not compute"
        raise InputError(CONFIG, what, f"supported: {', '.join(map(str, known))}")
    return tuple(given[:layers])


def windows(config: Mapping[str, Any], layers: int, default: Callable[[int], str]) -> tuple[int | None, ...]:
    """Each block's window where the config has `layer_types` and a `sliding_window`; default(block) gives the types.

    Raises:
        InputError: as per_block, or a sliding block without a window.
    """
    types = per_block(config, "layer_types", layers, (FULL, SLIDING), default)
    return tuple(positive_int(config, "sliding_window") if kind == SLIDING else None for kind in types)


def rotates(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Whether each block rotates. `no_rope_layers` holds 1 where it does, whatever its name says."""
    interval = positive_int(config, "no_rope_layer_interval", 4)
    given = per_block(config, "no_rope_layers", layers, (0, 1), lambda block: int((block + 1) % interval != 0))
    return tuple(bool(value) for value in given)


def qwen_windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Qwen's: `sliding_window` counts only under `use_sliding_window`, from block `max_window_layers` on."""
    if not flag(config, "use_sliding_window", False):
        return windows({**config, "sliding_window": None}, layers, lambda _: FULL)
    first = config.get("max_window_layers", 28)
    if type(first) is not int:
        raise InputError(CONFIG, f"max_window_layers is {first!r}, not a block's number", COMPARE)
    return windows(config, layers, lambda block: SLIDING if block >= first else FULL)
