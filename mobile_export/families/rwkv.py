"""RWKV-4, 169M to 14B (`rwkv`): a recurrent network, read into a spec of its own.

Unusual: no attention and no KV cache, but a state of five rows an execution, whatever the length of the text. Block 0
holds a norm of the embedding. `rescale_every` halves the stream every few blocks so that float16 does not overflow; in
float32 the network without it is the one that was trained, and the one built here.
"""

from __future__ import annotations

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.families.config import number, positive_int, prefix_of, tie
from mobile_export.families.dimensions import check_plausible
from mobile_export.families.spec import Recognised, RwkvSpec, WeightSource
from mobile_export.families.take import Take
from mobile_export.families.weight_map import Weights, tensor

MODEL_TYPES = ("rwkv",)
FINAL_EPS = 1e-5  # of the last norm, whatever layer_norm_epsilon says


def read(checkpoint: Checkpoint) -> Recognised:
    """Read an RWKV-4 checkpoint.

    Raises:
        InputError: a key that is missing, or asks for more than the file holds.
    """
    config = checkpoint.config
    hidden, layers = positive_int(config, "hidden_size"), positive_int(config, "num_hidden_layers")
    check_plausible(checkpoint, "num_hidden_layers", layers, 1)
    spec = RwkvSpec(
        family="rwkv",
        vocab_size=positive_int(config, "vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=layers,
        attention_hidden_size=positive_int(config, "attention_hidden_size", hidden),
        intermediate_size=positive_int(config, "intermediate_size", 4 * hidden),
        max_position_embeddings=positive_int(config, "context_length", 1024),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        final_norm_eps=FINAL_EPS,
    )
    return Recognised(spec, _weight_map(spec, checkpoint), tie(config, False), ())


def _weight_map(spec: RwkvSpec, checkpoint: Checkpoint) -> Weights:
    prefix = prefix_of(checkpoint.tensors, "rwkv.")
    hidden, inner, wide = spec.hidden_size, spec.attention_hidden_size, spec.intermediate_size
    weights = {"embedding.weight": tensor(f"{prefix}embeddings.weight", spec.vocab_size, hidden)}
    weights |= _norm("embedding.norm", f"{prefix}blocks.0.pre_ln", hidden)
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}blocks.{i}"
        time, channel = f"{theirs}.attention", f"{theirs}.feed_forward"
        weights |= _norm(f"{ours}.attention.norm", f"{theirs}.ln1", hidden)
        weights |= {f"{ours}.attention.mix_{part}": _mix(time, part, hidden) for part in ("key", "value", "receptance")}
        weights[f"{ours}.attention.decay"] = tensor(f"{time}.time_decay", inner, take=Take(value="minus_exp"))
        weights[f"{ours}.attention.bonus"] = tensor(f"{time}.time_first", inner)
        for part in ("key", "value", "receptance"):
            weights[f"{ours}.attention.{part}.weight"] = tensor(f"{time}.{part}.weight", inner, hidden)
        weights[f"{ours}.attention.output.weight"] = tensor(f"{time}.output.weight", hidden, inner)
        weights |= _norm(f"{ours}.ffn.norm", f"{theirs}.ln2", hidden)
        weights |= {f"{ours}.ffn.mix_{part}": _mix(channel, part, hidden) for part in ("key", "receptance")}
        weights[f"{ours}.ffn.key.weight"] = tensor(f"{channel}.key.weight", wide, hidden)
        weights[f"{ours}.ffn.receptance.weight"] = tensor(f"{channel}.receptance.weight", hidden, hidden)
        weights[f"{ours}.ffn.value.weight"] = tensor(f"{channel}.value.weight", hidden, wide)
    weights |= _norm("head.norm", f"{prefix}ln_out", hidden)
    if "head.weight" in checkpoint.tensors:
        weights["head.linear.weight"] = tensor("head.weight", spec.vocab_size, hidden)
    return weights


def _norm(ours: str, theirs: str, size: int) -> Weights:
    return {f"{ours}.{part}": tensor(f"{theirs}.{part}", size) for part in ("weight", "bias")}


def _mix(theirs: str, part: str, size: int) -> WeightSource:
    return tensor(f"{theirs}.time_mix_{part}", 1, 1, size, take=Take(flattened=True))
