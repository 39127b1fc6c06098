"""What this emitter cannot lower, refused by name before any work; and which attention a family can have."""

from __future__ import annotations

from collections.abc import Iterator

from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG
from mobile_export.families.spec import DecoderSpec, RwkvSpec


def check_lowerable(spec: DecoderSpec | RwkvSpec, kv_dtype: str = "float32") -> None:
    """Refuse a spec whose graph the .pte would not compute.

    Raises:
        InputError: names the family and the first feature in the way.
    """
    if isinstance(spec, RwkvSpec):
        if kv_dtype != "float32":
            what = f"family {spec.family!r} keeps a state and no KV cache, so none can be {kv_dtype}"
            raise InputError(CONFIG, what, "use --kv float32")
        return
    for feature in _beyond(spec, kv_dtype):
        what = f"family {spec.family!r} {feature}, which the .pte emitter does not lower yet"
        raise InputError(CONFIG, what, "try `mobile-export onnx`")


def attention_of(spec: DecoderSpec | RwkvSpec, asked: str) -> str:
    """ "custom" where it was asked for and the runtime's operators can express the family's attention, else "core".

    "none" for a family without attention. `llama::custom_sdpa` takes one mask for all heads, and so no ALiBi; it does
    nothing to a score but scale it.
    """
    if isinstance(spec, RwkvSpec):
        return "none"
    return "core" if spec.alibi != "none" or spec.attention_softcap is not None else asked


def _beyond(spec: DecoderSpec, kv_dtype: str) -> Iterator[str]:
    """The features of a spec that the lowered pieces lack, those that say most first."""
    plain = attention_of(spec, "custom") == "core" and kv_dtype != "float32"
    features = {
        f"adds ALiBi to an {kv_dtype} KV cache": plain and spec.alibi != "none",
        f"caps the scores of an {kv_dtype} KV cache": plain and spec.attention_softcap is not None,
    }
    return (name for name, present in features.items() if present)
