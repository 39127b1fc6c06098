"""The float32 oracle: transformers where it is installed, written out with every shared block repeated; else our own Decoder.

transformers is not a dependency of the tool. Which of the two was asked is said in the verification. The config and the
tensors go to transformers as the file has them, so that what a family reads into them is held against another reader.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from mobile_export.checkpoint.read import read_float32
from mobile_export.quantize.recipe import HEAD
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.reference import reference_logits, reference_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL_TYPES = {"mobilellm": "llama", "RefinedWeb": "falcon", "RefinedWebModel": "falcon"}  # transformers' name for them
OLD_KEYS = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_head_kv": "num_kv_heads"}  # RefinedWeb's
# Falcon's eager attention adds ALiBi twice; GPT-Neo has no other.
ATTENTION = {"falcon": "sdpa", "gpt_neo": "eager", "rwkv": "eager"}
NOT_ARCHITECTURE = (
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "quantization_config",  # the tensors it is given have their values
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
PER_BLOCK = ("attention_layers", "layer_types", "no_rope_layers")
NUMBERED = re.compile(r"^(.*?\.)(\d+)(\..*)$")  # the first number in a tensor's name is its block's


def float32_oracle(weights: ModelWeights, context: int) -> tuple[str, Callable[[list[int]], torch.Tensor]]:
    """What float32 logits are held against, and a function from tokens to logits [T, vocab]; whatever the recipe."""
    if importlib.util.find_spec("transformers") is None:
        decoder = reference_model(weights.in_float32(), context)
        return "plain PyTorch in float32 (transformers is not installed)", lambda tokens: reference_logits(decoder, tokens)
    model = written_out(weights)

    def logits(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([tokens]), use_cache=False).logits[0]

    return "transformers in float32", logits


def written_out(weights: ModelWeights) -> torch.nn.Module:
    """transformers' own model with one layer per execution, every shared block written out, float32.

    The reference MobileLLM code is wrong with a KV cache; a stock Llama is the network it computes without one.

    Raises:
        RuntimeError: transformers misses a tensor, or gets one it has no place for.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights that are in memory already
    config = _config(weights)
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    attention = ATTENTION.get(config.model_type)
    state = dict(_state(weights, model_class.base_model_prefix))
    state |= _absent_biases(weights, len(weights.plan.schedule))
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if wrong:
        raise RuntimeError(f"transformers' {model_class.__name__} does not hold what the checkpoint holds: {wrong[:5]}")
    factors = (weights.checkpoint.config.get("rope_scaling") or {}).get("factors")
    if factors:  # a GGUF's: transformers has no name for them
        cast("torch.Tensor", model.model.rotary_emb.inv_freq).div_(torch.tensor(factors))
    return model.eval()


def _config(weights: ModelWeights) -> PretrainedConfig:
    """transformers' config for the checkpoint's, with a layer for every execution."""
    from transformers import AutoConfig

    plan, given = weights.plan, weights.checkpoint.config
    kept = {key: value for key, value in given.items() if key not in NOT_ARCHITECTURE}
    values: dict[str, Any] = copy.deepcopy(kept)  # transformers writes into what it is given
    if (values.get("rope_scaling") or {}).get("factors"):
        del values["rope_scaling"]
    model_type = MODEL_TYPES.get(given["model_type"], given["model_type"])
    values |= {"tie_word_embeddings": plan.tied, **_decided_from_tensors(weights, model_type)}
    if given["model_type"].startswith("RefinedWeb"):
        values = {OLD_KEYS.get(key, key): value for key, value in values.items()}
        values.setdefault("new_decoder_architecture", given["model_type"] == "RefinedWeb")
    if model_type == "phi3" and (values.get("rope_scaling") or {}).get("type") in ("su", "yarn"):
        values["rope_scaling"] = {**values["rope_scaling"], "type": "longrope"}  # transformers 5.23 renames it too late
    if model_type == "rwkv":
        values["rescale_every"] = 0  # halving the stream meets LayerNorm's eps: another network
    config = AutoConfig.for_model(model_type, **values)
    if plan.schedule != tuple(range(weights.recognised.spec.num_hidden_layers)):
        order = [plan.blocks[stored] for stored in plan.schedule]
        for key in PER_BLOCK:
            if getattr(config, key, None):
                setattr(config, key, [getattr(config, key)[block] for block in order])
        config.num_hidden_layers = len(order)
    return config


def _decided_from_tensors(weights: ModelWeights, model_type: str) -> dict[str, Any]:
    """What transformers reads in the config, and a family decides from the tensors."""
    if model_type in ("llama", "smollm3"):
        spec = weights.recognised.decoder
        return {"attention_bias": spec.qkv_bias, "mlp_bias": spec.ffn_bias}
    if model_type == "opt":
        spec = weights.recognised.decoder
        return {"enable_bias": spec.qkv_bias, "layer_norm_elementwise_affine": spec.norm_affine}
    return {}


def _state(weights: ModelWeights, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the file under transformers' name, once for each execution of its block."""
    plan, tensors = weights.plan, weights.checkpoint.tensors
    heads = weights.recognised.weights[HEAD].tensors if HEAD in weights.recognised.weights else ()
    unused = {*weights.recognised.ignored, *(heads if plan.tied else ())}
    bare = not any(name.startswith(f"{prefix}.") for name in tensors)
    for name, tensor in tensors.items():
        if name in unused:
            continue
        whole = f"{prefix}.{name}" if bare and name not in heads and not name.startswith("lm_head.") else name
        numbered = NUMBERED.match(whole)
        if numbered is None or ".pre_ln." in name:  # RWKV's norm of the embedding, which is stored with block 0
            yield whole, read_float32(tensor)
            continue
        start, block, rest = numbered.groups()
        for execution, stored in enumerate(plan.schedule):
            if plan.blocks[stored] == int(block):
                yield f"{start}{execution}{rest}", read_float32(tensor)


def _absent_biases(weights: ModelWeights, layers: int) -> dict[str, torch.Tensor]:
    """Zeros where a Llama has biases on query, key and value and none on the output: its attention_bias means all four."""
    if weights.recognised.spec.family not in ("llama", "mobilellm"):
        return {}
    spec = weights.recognised.decoder
    if not spec.qkv_bias or spec.o_bias:
        return {}
    return {f"model.layers.{i}.self_attn.o_proj.bias": torch.zeros(spec.hidden_size) for i in range(layers)}
