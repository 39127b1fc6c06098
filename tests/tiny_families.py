"""Tiny seeded checkpoints of every family, built from the family's own class in transformers and saved as it saves them.

Matrices are wide enough and every 1-D weight is random, so that a tensor left out, swapped or scaled wrongly moves the
logits. Windows and chunks are shorter than the text, so that masks matter. `reference` gives the logits to agree with.
"""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VOCAB, POSITIONS = 96, 64
TOKENS = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(4)).tolist()
ROOM = tempfile.TemporaryDirectory(prefix="mobile-export-families-")
ATTENTION = {"falcon": "sdpa", "gpt_neo": "eager", "gemma3_text": "eager"}  # falcon's eager adds ALiBi twice

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": POSITIONS}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
OPT = {**SIZES, "ffn_dim": 96, "max_position_embeddings": POSITIONS, "pad_token_id": 1}
NEOX = {**SIZES, "intermediate_size": 96, "max_position_embeddings": POSITIONS}
FALCON = {**SIZES, "max_position_embeddings": POSITIONS}
PHI3 = {**LLAMA, "pad_token_id": 0, "original_max_position_embeddings": POSITIONS}
LLAMA4 = {**LLAMA, "num_hidden_layers": 3, "head_dim": 16, "intermediate_size_mlp": 96, "moe_layers": []}
LFM2 = {**LLAMA, "num_hidden_layers": 3, "block_multiple_of": 32, "norm_eps": 1e-3}
RWKV = {"hidden_size": 64, "num_hidden_layers": 2, "context_length": POSITIONS, "rescale_every": 0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 2.0, 2.5],
    "long_factor": [4.0] * 6,
}


@dataclass(frozen=True)
class Tiny:
    """One checkpoint: a config of transformers, and the same config as files of before transformers 5 say it.

    old: keys laid over the saved config.json; None takes one out.
    """

    model_type: str
    config: Mapping[str, Any]
    old: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)


PLAIN_ROPE = {"rope_parameters": None, "rope_theta": 10_000.0, "rope_scaling": None}
FAMILIES: dict[str, Tiny] = {
    "gpt2-cerebras": Tiny("gpt2", {**GPT2, "activation_function": "gelu", "n_inner": 96}, {"n_inner": 96}),
    "gpt2-lamini": Tiny("gpt2", GPT2, {"tie_word_embeddings": None, "activation_function": "gelu_fast"}),
    "gpt2-unscaled": Tiny("gpt2", {**GPT2, "scale_attn_weights": False}),
    "opt-125m": Tiny("opt", OPT, {"enable_bias": None, "layer_norm_elementwise_affine": None}),
    "opt-350m": Tiny("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "galactica": Tiny("opt", {**OPT, "activation_function": "gelu"}),
    "galactica-bare": Tiny(
        "opt", {**OPT, "activation_function": "gelu", "enable_bias": False, "layer_norm_elementwise_affine": False},
        {"enable_bias": None, "layer_norm_elementwise_affine": None, "bias": False},
    ),
    "gpt-neo": Tiny(
        "gpt_neo",
        {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "max_position_embeddings": POSITIONS, "window_size": 7,
         "attention_types": [[["global", "local"], 1], [["local"], 1]]},
        {"attention_layers": ["global", "local", "local"]},
    ),
    "pythia": Tiny(
        "gpt_neox", {**NEOX, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}},
        {"rope_parameters": None, "rotary_emb_base": 500, "rotary_pct": 0.25},
        {"embed_out.weight": "lm_head.weight"},  # some versions of transformers saved it so,
    ),
    "neox-sequential": Tiny("gpt_neox", {**NEOX, "use_parallel_residual": False, "attention_bias": False}),
    "bloom": Tiny(
        "bloom", {"hidden_size": 96, "n_layer": 2, "n_head": 6},
        {"hidden_size": None, "n_embed": 96, "n_head": None, "num_attention_heads": 6},
    ),
    "falcon-rw": Tiny(
        "falcon", {**FALCON, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
        {"model_type": "RefinedWebModel", "num_attention_heads": None, "n_head": 4, "num_hidden_layers": None, "n_layer": 2,
         "new_decoder_architecture": None},
    ),
    "falcon-rw-six-heads": Tiny(
        "falcon",
        {**FALCON, "hidden_size": 96, "num_attention_heads": 6, "alibi": True, "multi_query": False, "parallel_attn": False},
    ),
    "falcon-7b": Tiny("falcon", FALCON, PLAIN_ROPE),
    "falcon-new": Tiny(
        "falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        {"model_type": "RefinedWeb", "new_decoder_architecture": None, "num_kv_heads": None, "n_head_kv": 2},
    ),
    "falcon-11b": Tiny(
        "falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
    ),
    "qwen2": Tiny("qwen2", LLAMA, PLAIN_ROPE),
    "qwen2-window": Tiny(
        "qwen2",
        {**LLAMA, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        {**PLAIN_ROPE, "layer_types": None},
    ),
    "qwen3": Tiny("qwen3", {**LLAMA, "head_dim": 32, "tie_word_embeddings": True}, {**PLAIN_ROPE, "layer_types": None}),
    "smollm3": Tiny(
        "smollm3", {**LLAMA, "num_hidden_layers": 3, "no_rope_layer_interval": 2, "pad_token_id": 0},
        {**PLAIN_ROPE, "rope_theta": 2e6, "no_rope_layers": None, "layer_types": None},
    ),
    "smollm3-window": Tiny(
        "smollm3",
        {**LLAMA, "no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 7, "pad_token_id": 0},
        {"layer_types": None},
    ),
    "gemma3": Tiny(
        "gemma3_text",
        {**LLAMA, "num_hidden_layers": 3, "head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 50,
         "sliding_window_pattern": 2},
        {"rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "layer_types": None,
         "_sliding_window_pattern": None, "sliding_window_pattern": 2},
    ),
    "gemma3-scaled": Tiny(
        "gemma3_text",
        {**LLAMA, "head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
         "final_logit_softcapping": 3.0,
         "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        {"rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi2": Tiny(
        "phi", {**LLAMA, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
        {"rope_parameters": None, "rope_theta": 10_000.0, "rope_scaling": None, "partial_rotary_factor": 0.5},
    ),
    "phi-qk-norm": Tiny("phi", {**LLAMA, "qk_layernorm": True}),
    "phi3": Tiny("phi3", {**PHI3, "sliding_window": 9}, {**PLAIN_ROPE, "partial_rotary_factor": None}),
    "phi4-mini": Tiny(
        "phi3", {**PHI3, "max_position_embeddings": 4 * POSITIONS, "tie_word_embeddings": True, "rope_parameters": LONGROPE},
        {"rope_parameters": None, "rope_theta": 10_000.0, "partial_rotary_factor": 0.75,
         "rope_scaling": {"type": "su", "short_factor": LONGROPE["short_factor"], "long_factor": LONGROPE["long_factor"]}},
    ),
    "llama4-r1": Tiny(
        "llama4_text",
        {**LLAMA4, "no_rope_layers": [1, 1, 1], "attn_temperature_tuning": False, "tie_word_embeddings": True},
        {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": None, "sliding_window": 512, "layer_types": None,
         "interleave_moe_layer_step": 0},
    ),
    "llama4-chunks": Tiny(
        "llama4_text", {**LLAMA4, "no_rope_layers": [1, 0, 1], "attention_chunk_size": 9, "floor_scale": 4, "attn_scale": 0.5}
    ),
    "lfm2": Tiny(
        "lfm2", {**LFM2, "layer_types": ["conv", "full_attention", "conv"]},
        {"rope_parameters": None, "rope_theta": 1e6, "layer_types": None, "full_attn_idxs": [1], "intermediate_size": None,
         "block_ff_dim": 96, "tie_word_embeddings": None, "tie_embedding": True},
    ),
    "lfm2-biased": Tiny(
        "lfm2",
        {**LFM2, "layer_types": ["full_attention", "conv", "full_attention"], "conv_bias": True, "conv_L_cache": 4,
         "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False},
    ),
    "rwkv4": Tiny("rwkv", RWKV, {"attention_hidden_size": None, "intermediate_size": None, "rescale_every": 1}),
    "rwkv4-narrow": Tiny("rwkv", {**RWKV, "attention_hidden_size": 32, "intermediate_size": 96}),
}  # fmt: skip


@functools.cache
def reference(name: str) -> torch.nn.Module:
    """The family's own model with random weights, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = copy.deepcopy(FAMILIES[name])  # transformers writes into what it is given
    config = AutoConfig.for_model(tiny.model_type, vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, **tiny.config)
    torch.manual_seed(0)
    implementation = ATTENTION.get(tiny.model_type)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=implementation)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.dim() == 1 else 0.3 if parameter.dim() == 3 else 0.15
            around = parameter.mean().round() if parameter.dim() == 1 else 0  # a norm's ones, a bias's zeros
            parameter.copy_(around + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@functools.cache
def reference_logits(name: str) -> torch.Tensor:
    """Logits of TOKENS, float32 [T, vocab], without a cache."""
    with torch.no_grad():
        return reference(name)(torch.tensor([TOKENS]), use_cache=False).logits[0]


@functools.cache
def written(name: str) -> Path:
    """The checkpoint as transformers 5 saves it; do not write into it."""
    folder = Path(ROOM.name) / name
    reference(name).save_pretrained(folder)
    return folder


def write_family(
    folder: Path,
    name: str,
    *,
    old: bool = False,
    edit: Callable[[dict[str, torch.Tensor]], object] | None = None,
    **changes: Any,
) -> Path:
    """A copy to change.

    Args:
        old: as files of before transformers 5 say it.
        edit: changes the tensors, by name, in place.
        changes: laid over config.json; None takes a key out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tiny, source = FAMILIES[name], written(name)
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    if old:
        config |= {"torch_dtype": config.pop("dtype", "float32"), **tiny.old}
        tensors = {tiny.rename.get(key, key): tensor for key, tensor in tensors.items()}
    config |= changes
    if edit:
        edit(tensors)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
