"""How llama.cpp renames one architecture's config keys and tensors; one entry of `ARCHITECTURES` each.

Source: llama.cpp convert_hf_to_gguf.py and gguf-py/gguf/tensor_mapping.py, read backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GgufArchitecture:
    """One architecture, as data.

    config: what config.json would say and GGUF leaves implied.
    keys: metadata key, without "<architecture>.", -> config.json key.
    required: those of `keys` that must be there.
    unused: metadata keys known not to change the graph; any other key is an error.
    tensors: GGUF name -> Hugging Face name, without ".weight" or ".bias"; "{}" is the block's number.
    interleaved_heads: GGUF names whose rows llama.cpp reordered for its rotary embedding -> config key with the
        number of heads. See `gguf_file.halves_from_pairs`.
    skipped: tensors that repeat what the config says.
    """

    config: Mapping[str, Any]
    keys: Mapping[str, str]
    required: frozenset[str]
    unused: frozenset[str]
    tensors: Mapping[str, str]
    interleaved_heads: Mapping[str, str]
    skipped: frozenset[str]


LLAMA = GgufArchitecture(
    config={"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"},
    keys={
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "rope.freq_base": "rope_theta",
        "vocab_size": "vocab_size",
    },
    required=frozenset(
        {
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.layer_norm_rms_epsilon",
        }
    ),
    unused=frozenset({"tensor_data_layout", "rope.scaling.finetuned"}),
    tensors={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
        "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
        "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    },
    interleaved_heads={"blk.{}.attn_q": "num_attention_heads", "blk.{}.attn_k": "num_key_value_heads"},
    skipped=frozenset({"blk.{}.attn_rot_embd"}),
)

ARCHITECTURES = {"llama": LLAMA}
