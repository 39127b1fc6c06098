"""OPT 125M to 66B and Galactica (`opt`).

Unusual: the position table has two rows more than positions, and position p reads row p + 2. OPT-350M norms after each
sum instead of before, has no final norm, and a table of 512 columns with a projection in and out of the stream. One form
of Galactica has neither biases nor norm weights; copies of its configs disagree on the keys, so the tensors decide.
A block's `final_layer_norm` is its feed-forward's norm. The norms' eps is 1e-5 always.
"""

from __future__ import annotations

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import activation, flag, positive_int, prefix_of, tie
from mobile_export.families.dimensions import read_dimensions
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised
from mobile_export.families.weight_map import (
    Weights,
    feed_forward,
    head,
    linear,
    norm,
    output,
    positions,
    query_key_value,
    table,
)

MODEL_TYPES = ("opt",)
PREFIXES = ("model.decoder.", "decoder.")
OFFSET = 2


def read(checkpoint: Checkpoint) -> Recognised:
    """Read an OPT checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another.
    """
    config = checkpoint.config
    dimensions = read_dimensions(checkpoint, config, grouped=False)
    hidden, rows = dimensions["hidden_size"], positive_int(config, "max_position_embeddings", 2048)
    columns = positive_int(config, "word_embed_proj_dim", hidden)
    before = flag(config, "do_layer_norm_before", True)
    first = f"{prefix_of(checkpoint.tensors, *PREFIXES)}layers.0."
    biased = f"{first}self_attn.q_proj.bias" in checkpoint.tensors
    spec = DecoderSpec(
        family="opt",
        vocab_size=positive_int(config, "vocab_size"),
        **dimensions,
        intermediate_size=positive_int(config, "ffn_dim"),
        max_position_embeddings=rows,
        norm_eps=1e-5,
        hidden_act=activation(config, "activation_function", "relu"),
        ropes=(),
        blocks=(BlockSpec(rope=None),) * dimensions["num_hidden_layers"],
        norm="layer",
        norm_affine=f"{first}final_layer_norm.weight" in checkpoint.tensors,
        norm_placement="pre" if before else "post",
        final_norm=before and not flag(config, "_remove_final_layer_norm", False),
        embedding_size=None if columns == hidden else columns,
        learned_positions=rows + OFFSET,
        position_offset=OFFSET,
        gated=False,
        qkv_bias=biased,
        o_bias=biased,
        ffn_bias=biased,
    )
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, True), ())


def _weight_map(spec: DecoderSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, *PREFIXES)
    hidden, columns = spec.hidden_size, spec.table_size
    norms = ("attention.norm", "ffn.norm") if spec.norm_placement == "pre" else ("ffn.o_norm", "ffn.down_norm")
    weights = table(spec, f"{prefix}embed_tokens.weight") | positions(spec, f"{prefix}embed_positions.weight")
    if spec.embedding_size:
        weights |= linear("embedding.project", f"{prefix}project_in", hidden, columns, bias=False)
        weights |= linear("head.project", f"{prefix}project_out", columns, hidden, bias=False)
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        weights |= norm(f"{ours}.{norms[0]}", f"{theirs}.self_attn_layer_norm", spec)
        weights |= query_key_value(spec, i, {part: f"{theirs}.self_attn.{part}_proj" for part in "qkv"})
        weights |= output(spec, i, f"{theirs}.self_attn.out_proj")
        weights |= norm(f"{ours}.{norms[1]}", f"{theirs}.final_layer_norm", spec)
        weights |= feed_forward(spec, i, {"up": f"{theirs}.fc1", "down": f"{theirs}.fc2"})
    if spec.final_norm:
        weights |= norm("head.norm", f"{prefix}final_layer_norm", spec)
    return weights | head(spec, checkpoint.tensors)
