"""GPT-2's form: Cerebras-GPT 111M to 1.3B, LaMini-GPT, GPT-2 itself (`gpt2`).

Unusual: its Conv1D stores every matrix as (in_features, out_features); query, key and value are one tensor in that order.
Positions are learned, so the context ends where the table does. Cerebras activates with the erf GELU, LaMini with the
tanh one. Old files hold the causal mask as `attn.bias`.
"""

from __future__ import annotations

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import activation, flag, number, positive_int, prefix_of, refuse, tie
from mobile_export.families.dimensions import GPT2_NAMES, read_dimensions
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import Weights, feed_forward, head, linear, norm, output, positions, table

MODEL_TYPES = ("gpt2",)
IGNORED = (".attn.bias", ".attn.masked_bias")


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a GPT-2 checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another, or scores scaled by the block's number.
    """
    config = checkpoint.config
    refuse(config, "scale_attn_by_inverse_layer_idx", "use a checkpoint trained without it")
    dimensions = read_dimensions(checkpoint, config, GPT2_NAMES, grouped=False)
    rows = positive_int(config, "n_positions", 1024)
    spec = DecoderSpec(
        family="gpt2",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=positive_int(config, "n_inner", 4 * dimensions["hidden_size"]),
        max_position_embeddings=rows,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        hidden_act=activation(config, "activation_function", "gelu_new"),
        ropes=(),
        blocks=(BlockSpec(rope=None),) * dimensions["num_hidden_layers"],
        norm="layer",
        learned_positions=rows,
        attention_scale=None if flag(config, "scale_attn_weights", True) else 1.0,
        gated=False,
        qkv_bias=True,
        o_bias=True,
        ffn_bias=True,
    )
    ignored = tuple(name for name in checkpoint.tensors if name.endswith(IGNORED))
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, True), ignored)


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, "transformer.")
    weights = table(spec, f"{prefix}wte.weight") | positions(spec, f"{prefix}wpe.weight")
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}h.{i}"
        weights |= norm(f"{ours}.attention.norm", f"{theirs}.ln_1", spec)
        joined, sizes = f"{theirs}.attn.c_attn", (spec.qkv_size, spec.hidden_size)
        weights |= linear(f"{ours}.attention.qkv", joined, *sizes, bias=True, transposed=True)
        weights |= output(spec, i, f"{theirs}.attn.c_proj", transposed=True)
        weights |= norm(f"{ours}.ffn.norm", f"{theirs}.ln_2", spec)
        weights |= feed_forward(spec, i, {"up": f"{theirs}.mlp.c_fc", "down": f"{theirs}.mlp.c_proj"}, transposed=True)
    return weights | norm("head.norm", f"{prefix}ln_f", spec) | head(spec, checkpoint.tensors)
