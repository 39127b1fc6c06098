"""What this emitter can lower so far: a Llama's graph. Anything else is refused by name, before any work."""

from __future__ import annotations

from collections.abc import Iterator

from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG
from mobile_export.families.spec import DecoderSpec, RwkvSpec

ACTIVATIONS = ("silu", "relu", "gelu")  # XNNPACK 1.5.1 runs a tanh-GELU as an erf-GELU: 1e-4 of the largest logit


def check_lowerable(spec: DecoderSpec | RwkvSpec, context: int) -> None:
    """Refuse a spec whose graph the .pte would not compute.

    context: KV rows; a window or a chunk no shorter than that changes nothing.
    Raises:
        InputError: names the family and the first feature in the way.
    """
    for feature in ("is recurrent",) if isinstance(spec, RwkvSpec) else _beyond(spec, context):
        what = f"family {spec.family!r} {feature}, which the .pte emitter does not lower yet"
        raise InputError(CONFIG, what, "try `mobile-export onnx`")


def _beyond(spec: DecoderSpec, context: int) -> Iterator[str]:
    """The features of a spec that the lowered pieces lack, those that say most first."""
    blocks, whole = spec.blocks, spec.head_dim // 2
    scale = spec.head_dim**-0.5
    features = {
        "mixes by a short convolution": any(block.mixer == "conv" for block in blocks),
        "adds ALiBi": spec.alibi != "none",
        "adds learned positions": spec.learned_positions > 0,
        "attends within a window": any(block.window is not None and block.window < context for block in blocks),
        "attends within chunks": any(block.chunk is not None and block.chunk < context for block in blocks),
        "norms query and key": any(block.qk_norm != "none" for block in blocks),
        "adds attention and feed-forward in parallel": spec.parallel_residual,
        f"places its norms {spec.norm_placement!r}": spec.norm_placement != "pre",
        "uses LayerNorm": spec.norm == "layer",
        "has norms without weights": not spec.norm_affine,
        "has no final norm": not spec.final_norm,
        "leaves blocks without a rotation": any(block.rope is None for block in blocks),
        "rotates blocks differently": len(spec.ropes) > 1,
        "rotates neighbouring channels": any(rope.interleaved for rope in spec.ropes),
        "rotates part of a head": any(len(rope.inverse_frequencies) != whole for rope in spec.ropes),
        "scales queries by position": any(block.query_temperature for block in blocks),
        "scales its scores by another factor": spec.attention_scale not in (None, scale),
        "caps its scores": spec.attention_softcap is not None,
        "caps its logits": spec.logit_softcap is not None,
        "scales its logits": spec.logit_scale != 1,
        "norms its embedding": spec.embedding_norm,
        "scales its embedding": spec.embedding_scale != 1,
        "projects its embedding": spec.embedding_size is not None,
        "has a feed-forward without a gate": not spec.gated,
        "has a bias on the head": spec.head_bias,
        f"activates with {spec.hidden_act}": spec.hidden_act not in ACTIVATIONS,
    }
    return (name for name, present in features.items() if present)
