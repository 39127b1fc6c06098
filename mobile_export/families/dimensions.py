"""A decoder's widths out of config.json, whatever a family calls them, refused where no file can back them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG, positive_int
from mobile_export.units import counted

GPT2_NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


class Dimensions(TypedDict):
    """The fields of DecoderSpec every family has to find."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


def read_dimensions(
    checkpoint: Checkpoint, config: Mapping[str, Any], names: Mapping[str, str] | None = None, *, grouped: bool = True
) -> Dimensions:
    """Widths of the residual stream, the heads and the depth.

    Args:
        names: DecoderSpec's name -> this config's, where they differ.
        grouped: whether the family knows num_key_value_heads and head_dim; else both follow from the rest.
    Raises:
        InputError: a key that is missing or contradicts another, or asks for more than the file holds.
    """
    called = {name: (names or {}).get(name, name) for name in Dimensions.__annotations__}
    hidden, heads = (positive_int(config, called[name]) for name in ("hidden_size", "num_attention_heads"))
    kv_heads = positive_int(config, called["num_key_value_heads"], heads) if grouped else heads
    if heads % kv_heads:
        what = f"{called['num_attention_heads']} {heads} is not a multiple of {called['num_key_value_heads']} {kv_heads}"
        raise InputError(CONFIG, what, "check both against the checkpoint's own config.json")
    given = config.get(called["head_dim"]) if grouped else None
    if given is None and hidden % heads:
        what = f"{called['hidden_size']} {hidden} is not a multiple of {called['num_attention_heads']} {heads}"
        raise InputError(CONFIG, what + " and head_dim is not given" * grouped, "add head_dim" if grouped else "check both")
    head_dim = positive_int(config, called["head_dim"], hidden // heads) if grouped else hidden // heads
    layers = positive_int(config, called["num_hidden_layers"])
    check_plausible(checkpoint, called["num_hidden_layers"], layers, head_dim)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def check_plausible(checkpoint: Checkpoint, key: str, layers: int, head_dim: int) -> None:
    """Refuse what no file can back, before a map of a billion blocks or a table of a terabyte is made."""
    widest = max((size for tensor in checkpoint.tensors.values() for size in tensor.shape), default=0)
    then = "use the config.json this checkpoint was saved with"
    if layers > len(checkpoint.tensors):
        held = f"the checkpoint holds {counted(len(checkpoint.tensors), 'tensor')}"
        raise InputError(CONFIG, f"{key} is {layers}, {held}", then)
    if head_dim > widest:
        raise InputError(CONFIG, f"head_dim is {head_dim}, the widest tensor has {widest}", then)
