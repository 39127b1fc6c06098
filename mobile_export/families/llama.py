"""LLaMA-2, Llama 3.2, SmolLM2, and whatever else says `model_type: llama`.

Unusual: biases are decided from the tensors, not from `attention_bias`; MobileLLM's GitHub configs arrive here too
(they say `llama` and hold neither `share_embedding` nor `layer_sharing`), so the tie is left to the tensors.
"""

from __future__ import annotations

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG, flag, number, positive_int
from mobile_export.families.rope import read_rope
from mobile_export.families.spec import DecoderSpec, Recognised, SharingFlags, WeightSource
from mobile_export.units import counted

MODEL_TYPES = ("llama",)
ACTIVATIONS = ("silu", "relu", "gelu")
IGNORED = ("rotary_emb.inv_freq",)


def read(checkpoint: Checkpoint) -> Recognised:
    """Read a llama-shaped checkpoint.

    Raises:
        InputError: a key that is missing or contradicts another; nothing is read from the tensors but their names.
    """
    config = checkpoint.config
    hidden, heads = positive_int(config, "hidden_size"), positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        what = f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        raise InputError(CONFIG, what, "check both against the checkpoint's own config.json")
    if config.get("head_dim") is None and hidden % heads:
        what = f"hidden_size {hidden} is not a multiple of num_attention_heads {heads} and head_dim is not given"
        raise InputError(CONFIG, what, "add head_dim")
    head_dim = positive_int(config, "head_dim", hidden // heads)
    _check_plausible(checkpoint, positive_int(config, "num_hidden_layers"), head_dim)
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise InputError(CONFIG, f"hidden_act {activation!r} is not supported", f"supported: {', '.join(ACTIVATIONS)}")

    prefix = "model." if any(name.startswith("model.") for name in checkpoint.tensors) else ""
    first = f"{prefix}layers.0."
    spec = DecoderSpec(
        family="llama",
        vocab_size=positive_int(config, "vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=positive_int(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=positive_int(config, "intermediate_size"),
        max_position_embeddings=positive_int(config, "max_position_embeddings", 2048),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        hidden_act=activation,
        rope=read_rope(config, head_dim),
        qkv_bias=f"{first}self_attn.q_proj.bias" in checkpoint.tensors,
        o_bias=f"{first}self_attn.o_proj.bias" in checkpoint.tensors,
        ffn_bias=f"{first}mlp.gate_proj.bias" in checkpoint.tensors,
    )
    tie = config.get("tie_word_embeddings")
    flags = SharingFlags(
        None if tie is None else (f"tie_word_embeddings: {str(tie).lower()}", flag(config, "tie_word_embeddings", False))
    )
    ignored = tuple(name for name in checkpoint.tensors if name.endswith(IGNORED))
    return Recognised(spec, weight_map(spec, prefix, "lm_head.weight" in checkpoint.tensors), flags, ignored)


def _check_plausible(checkpoint: Checkpoint, layers: int, head_dim: int) -> None:
    """Refuse what no file can back, before a map of a billion blocks or a table of a terabyte is made."""
    widest = max((size for tensor in checkpoint.tensors.values() for size in tensor.shape), default=0)
    then = "use the config.json this checkpoint was saved with"
    if layers > len(checkpoint.tensors):
        held = f"the checkpoint holds {counted(len(checkpoint.tensors), 'tensor')}"
        raise InputError(CONFIG, f"num_hidden_layers is {layers}, {held}", then)
    if head_dim > widest:
        raise InputError(CONFIG, f"head_dim is {head_dim}, the widest tensor has {widest}", then)


def weight_map(spec: DecoderSpec, prefix: str, has_head: bool) -> dict[str, WeightSource]:
    """The graph's names -> llama's tensor names under `prefix` ("model." or "")."""
    hidden, ffn, vocab = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    query, value = spec.attended_size, spec.num_key_value_heads * spec.head_dim

    def one(tensor: str, *shape: int) -> WeightSource:
        return WeightSource((tensor,), (shape,))

    weights = {"embedding.weight": one(f"{prefix}embed_tokens.weight", vocab, hidden)}
    for i in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        qkv = tuple(f"{theirs}.self_attn.{n}_proj" for n in "qkv")
        rows = (query, value, value)
        weights[f"{ours}.attention.norm.weight"] = one(f"{theirs}.input_layernorm.weight", hidden)
        weights[f"{ours}.attention.qkv.weight"] = WeightSource(
            tuple(f"{n}.weight" for n in qkv), tuple((r, hidden) for r in rows)
        )
        weights[f"{ours}.ffn.o.weight"] = one(f"{theirs}.self_attn.o_proj.weight", hidden, query)
        weights[f"{ours}.ffn.norm.weight"] = one(f"{theirs}.post_attention_layernorm.weight", hidden)
        weights[f"{ours}.ffn.gate.weight"] = one(f"{theirs}.mlp.gate_proj.weight", ffn, hidden)
        weights[f"{ours}.ffn.up.weight"] = one(f"{theirs}.mlp.up_proj.weight", ffn, hidden)
        weights[f"{ours}.ffn.down.weight"] = one(f"{theirs}.mlp.down_proj.weight", hidden, ffn)
        if spec.qkv_bias:
            weights[f"{ours}.attention.qkv.bias"] = WeightSource(tuple(f"{n}.bias" for n in qkv), tuple((r,) for r in rows))
        if spec.o_bias:
            weights[f"{ours}.ffn.o.bias"] = one(f"{theirs}.self_attn.o_proj.bias", hidden)
        if spec.ffn_bias:
            weights[f"{ours}.ffn.gate.bias"] = one(f"{theirs}.mlp.gate_proj.bias", ffn)
            weights[f"{ours}.ffn.up.bias"] = one(f"{theirs}.mlp.up_proj.bias", ffn)
            weights[f"{ours}.ffn.down.bias"] = one(f"{theirs}.mlp.down_proj.bias", hidden)
    weights["head.norm.weight"] = one(f"{prefix}norm.weight", hidden)
    if has_head:
        weights["head.linear.weight"] = one("lm_head.weight", vocab, hidden)
    return weights
