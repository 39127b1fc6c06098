"""The float32 oracle: transformers where it is installed, written out with every shared block repeated; else our own Decoder.

transformers is not a dependency of the tool. Which of the two was asked is said in the verification.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import cast

import torch

from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.reference import reference_decoder, reference_logits


def float32_oracle(weights: ModelWeights, context: int) -> tuple[str, Callable[[list[int]], torch.Tensor]]:
    """What float32 logits are held against, and a function from tokens to logits [T, vocab]."""
    if importlib.util.find_spec("transformers") is None:
        decoder = reference_decoder(weights, context)
        return "plain PyTorch in float32 (transformers is not installed)", lambda tokens: reference_logits(decoder, tokens)
    model = duplicated_llama(weights)

    def logits(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([tokens]), use_cache=False).logits[0]

    return "transformers in float32", logits


def duplicated_llama(weights: ModelWeights) -> torch.nn.Module:
    """A stock LlamaForCausalLM with one layer per execution, every shared block written out, float32.

    The reference MobileLLM code is wrong with a KV cache; this is the network it computes without one.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    spec, plan, tensors = weights.recognised.spec, weights.plan, weights.checkpoint.tensors
    keys = ("rope_theta", "rope_scaling", "rope_parameters")
    rope = {key: weights.checkpoint.config[key] for key in keys if weights.checkpoint.config.get(key) is not None}
    factors = (rope.get("rope_scaling") or {}).get("factors")  # a GGUF's: transformers has no name for them
    if factors:
        del rope["rope_scaling"]
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=len(plan.schedule),
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        hidden_act=spec.hidden_act,
        max_position_embeddings=spec.max_position_embeddings,
        rms_norm_eps=spec.norm_eps,
        tie_word_embeddings=plan.tied,
        attention_bias=spec.qkv_bias,
        mlp_bias=spec.ffn_bias,
        **rope,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {"model.embed_tokens.weight": weights.float32("embedding.weight")}
    prefix = "model." if "model.embed_tokens.weight" in tensors else ""
    for execution, stored in enumerate(plan.schedule):
        source = f"{prefix}layers.{plan.blocks[stored]}."
        for name in tensors:
            if name.startswith(source) and name not in weights.recognised.ignored:
                state[f"model.layers.{execution}.{name.removeprefix(source)}"] = tensors[name].read().float()
    state["model.norm.weight"] = weights.float32("head.norm.weight")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] if plan.tied else weights.float32("head.linear.weight")
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and name not in state:  # q, k and v with a bias, o without: attention_bias means all four
            state[name] = torch.zeros(parameter.shape)
    model.load_state_dict(state, assign=True, strict=True)
    rotary = LlamaRotaryEmbedding(config)  # no weights: built on the meta device, it holds no frequencies
    if factors:
        cast("torch.Tensor", rotary.inv_freq).div_(torch.tensor(factors))
    model.model.rotary_emb = rotary
    model.train(mode=False)
    return model
