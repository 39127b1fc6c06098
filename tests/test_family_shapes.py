"""The families at the sizes people ship: no weight exists, only names and shapes, as transformers' own class has them."""

import pytest
import torch

from mobile_export.checkpoint import Checkpoint, StoredTensor
from mobile_export.families import recognise
from mobile_export.quantize.recipe import read_recipe
from mobile_export.quantize.sizes import stored_parameters
from mobile_export.quantize.weights import ModelWeights
from mobile_export.sharing import SharingPlan

ROTARY = {"rope_theta": 10_000.0}
SHIPPED = {
    "cerebras-gpt-256m": ("gpt2", {"n_embd": 1088, "n_layer": 14, "n_head": 17, "n_inner": 4352, "n_positions": 2048,
                                   "activation_function": "gelu", "vocab_size": 50257}),
    "cerebras-gpt-590m": ("gpt2", {"n_embd": 1536, "n_layer": 18, "n_head": 12, "n_inner": 6144, "n_positions": 2048,
                                   "activation_function": "gelu", "vocab_size": 50257}),
    "opt-125m": ("opt", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
                         "vocab_size": 50272}),
    "opt-350m": ("opt", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096,
                         "vocab_size": 50272, "do_layer_norm_before": False, "word_embed_proj_dim": 512}),
    "gpt-neo-125m": ("gpt_neo", {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "vocab_size": 50257,
                                 "attention_types": [[["global", "local"], 6]]}),
    "pythia-160m": ("gpt_neox", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                                 "intermediate_size": 3072, "vocab_size": 50304, "rotary_pct": 0.25}),
    "pythia-1b": ("gpt_neox", {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8,
                               "intermediate_size": 8192, "vocab_size": 50304, "rotary_pct": 0.25}),
    "bloom-560m": ("bloom", {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}),
    "falcon-rw-1b": ("falcon", {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "alibi": True,
                                "bias": True, "multi_query": False, "parallel_attn": False, "vocab_size": 50304}),
    "llama-2-7b": ("llama", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                             "intermediate_size": 11008, "vocab_size": 32000, **ROTARY}),
    "qwen2.5-0.5b": ("qwen2", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                               "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
                               "tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3-0.6b": ("qwen3", {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
                             "num_key_value_heads": 8, "intermediate_size": 3072, "vocab_size": 151936,
                             "tie_word_embeddings": True, "rope_theta": 1e6}),
    "gemma-3-270m": ("gemma3_text", {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4,
                                     "num_key_value_heads": 1, "intermediate_size": 2048, "vocab_size": 262144,
                                     "sliding_window": 512}),
    "smollm3-3b": ("smollm3", {}),
    "phi-2": ("phi", {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240,
                      "partial_rotary_factor": 0.4, "vocab_size": 51200}),
    "phi-3-mini-4k": ("phi3", {"sliding_window": 2047}),
    "mobilellm-r1-140m": ("llama4_text", {"hidden_size": 576, "num_hidden_layers": 15, "num_attention_heads": 9,
                                          "num_key_value_heads": 3, "head_dim": 64, "intermediate_size_mlp": 2048,
                                          "vocab_size": 128256, "moe_layers": [], "tie_word_embeddings": True}),
    "lfm2-350m": ("lfm2", {"hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "block_ff_dim": 6656,
                           "full_attn_idxs": [2, 5, 8, 10, 12, 14], "vocab_size": 65536}),
    "rwkv-4-169m": ("rwkv", {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 50277}),
}  # fmt: skip


def never():
    raise AssertionError("a weight was read")


def described(model_type, config):
    """A checkpoint of names and shapes alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        full = AutoConfig.for_model(model_type, **config)
        model = AutoModelForCausalLM.from_config(full)
    tensors = {
        name: StoredTensor(name, tuple(parameter.shape), "F32", f"model.safetensors: {name}", (name,), never, never)
        for name, parameter in model.named_parameters()  # a tied head is not among them
    }
    values = {**full.to_dict(), **config}
    checkpoint = Checkpoint(model_type, values, tensors, None, None, (), None, (), ())
    return checkpoint, sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("recipe", ["w4", "w8"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_size_is_recognised_and_takes_every_recipe(name, recipe):
    """No weight is read; every tensor has its place, and every matrix divides into the recipe's groups."""
    checkpoint, parameters = described(*SHIPPED[name])
    found = recognise(checkpoint)
    blocks = tuple(range(found.spec.num_hidden_layers))
    tied = "head.linear.weight" not in found.weights
    plan = SharingPlan(blocks, blocks, "none", tied, "", "", ())
    weights = ModelWeights(checkpoint, found, plan, read_recipe(recipe))
    assert stored_parameters(weights) == parameters
    bits = 8 * sum(weights.predicted_bytes().values()) / parameters
    assert bits < (8.2 if recipe == "w8" else 7.1)  # BLOOM's and Gemma's table of 8 bits is near half of all
