"""GPT-Neo 125M to 2.7B, TinyStories (`gpt_neo`).

Unusual: scores are not scaled at all; every other block sees a window of 256 positions (`attention_types` says which);
of the attention's projections only the output has a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG, activation, number, positive_int, prefix_of, tie
from mobile_export.families.dimensions import read_dimensions
from mobile_export.families.layer_types import COMPARE, per_block
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import Weights, feed_forward, head, norm, output, positions, query_key_value, table

MODEL_TYPES = ("gpt_neo",)
IGNORED = (".attn.attention.bias", ".attn.attention.masked_bias")
NAMES = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a GPT-Neo checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another, or kinds of attention that do not fit the depth.
    """
    config = checkpoint.config
    dimensions = read_dimensions(checkpoint, config, NAMES, grouped=False)
    rows = positive_int(config, "max_position_embeddings", 2048)
    window = positive_int(config, "window_size", 256)
    kinds = _kinds(config, dimensions["num_hidden_layers"])
    spec = DecoderSpec(
        family="gpt_neo",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=positive_int(config, "intermediate_size", 4 * dimensions["hidden_size"]),
        max_position_embeddings=rows,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        hidden_act=activation(config, "activation_function", "gelu_new"),
        ropes=(),
        blocks=tuple(BlockSpec(rope=None, window=window if kind == "local" else None) for kind in kinds),
        norm="layer",
        learned_positions=rows,
        attention_scale=1.0,
        gated=False,
        o_bias=True,
        ffn_bias=True,
    )
    ignored = tuple(name for name in checkpoint.tensors if name.endswith(IGNORED))
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, True), ignored)


def _kinds(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """`attention_types` holds runs, [[["global", "local"], 6]]; written out, they are `attention_layers`."""
    runs = config.get("attention_types") or [[["global", "local"], layers // 2]]
    try:
        kinds = [kind for kinds, times in runs for _ in range(min(times, layers)) for kind in kinds]
    except (TypeError, ValueError):
        raise InputError(CONFIG, f"attention_types is {runs!r}, not runs of kinds", COMPARE) from None
    written = {"attention_types": kinds}
    return per_block(written, "attention_types", layers, ("global", "local"), lambda _: "global")


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, "transformer.")
    weights = table(spec, f"{prefix}wte.weight") | positions(spec, f"{prefix}wpe.weight")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}h.{i}"
        attention = f"{theirs}.attn.attention"
        weights |= norm(f"{ours}.attention.norm", f"{theirs}.ln_1", spec)
        weights |= query_key_value(spec, i, {part: f"{attention}.{part}_proj" for part in "qkv"})
        weights |= output(spec, i, f"{attention}.out_proj")
        weights |= norm(f"{ours}.ffn.norm", f"{theirs}.ln_2", spec)
        weights |= feed_forward(spec, i, {"up": f"{theirs}.mlp.c_fc", "down": f"{theirs}.mlp.c_proj"})
    return weights | norm("head.norm", f"{prefix}ln_f", spec) | head(spec, checkpoint.tensors)
