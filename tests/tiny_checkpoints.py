"""Tiny checkpoints, written to a folder in milliseconds and the same for the same seed.

Weights are random but wide enough (0.08 around 0; norms around 1, not at it) that a tensor left out, swapped or
scaled wrongly moves the logits. `llama_tensors` gives the numbers themselves.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from mobile_export.checkpoint import open_checkpoint
from mobile_export.errors import InputError

Form = Literal["safetensors", "bin", "sharded", "legacy-bin"]
TokenizerKind = Literal["json", "sentencepiece"]

UNK, BOS, EOS = 0, 1, 2
SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = "the quick brown fox jumps over the lazy dog and then the other thing in the morning "


def refusal(source: Path | str) -> str:
    """The line open_checkpoint refuses `source` with, which must be the user's fault (exit code 3)."""
    with pytest.raises(InputError) as error:
        open_checkpoint(str(source))
    assert error.value.exit_code == 3
    line = str(error.value)
    assert "\n" not in line
    return line


# --- tensors -----------------------------------------------------------------------------------------------------


def llama_tensors(
    *,
    blocks: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 128,
    vocab: int = 96,
    tied: bool = True,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """float32 tensors of a Llama, by Hugging Face name; a block's values do not depend on how many there are."""
    head_dim = head_dim or hidden // heads
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.08

    def norm() -> torch.Tensor:
        return 1 + torch.randn(hidden, generator=generator) * 0.1

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": norm()}
    if not tied:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    projections = {
        "self_attn.q_proj": (heads * head_dim, hidden, attention_bias),
        "self_attn.k_proj": (kv_heads * head_dim, hidden, attention_bias),
        "self_attn.v_proj": (kv_heads * head_dim, hidden, attention_bias),
        "self_attn.o_proj": (hidden, heads * head_dim, attention_bias),
        "mlp.gate_proj": (ffn, hidden, mlp_bias),
        "mlp.up_proj": (ffn, hidden, mlp_bias),
        "mlp.down_proj": (hidden, ffn, mlp_bias),
    }
    for block in range(blocks):
        prefix = f"model.layers.{block}."
        tensors[prefix + "input_layernorm.weight"] = norm()
        tensors[prefix + "post_attention_layernorm.weight"] = norm()
        for name, (rows, columns, bias) in projections.items():
            tensors[prefix + name + ".weight"] = matrix(rows, columns)
            if bias:
                tensors[prefix + name + ".bias"] = matrix(rows)
    return tensors


def in_schedule(
    tensors: Mapping[str, torch.Tensor], schedule: Sequence[int], *, share_storage: bool
) -> dict[str, torch.Tensor]:
    """The same model with block `schedule[i]` written as block i: cloned, or lying over the same storage."""
    written = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.")}
    for position, block in enumerate(schedule):
        source, target = f"model.layers.{block}.", f"model.layers.{position}."
        for name, tensor in tensors.items():
            if name.startswith(source):
                written[target + name.removeprefix(source)] = tensor if share_storage else tensor.clone()
    return written


# --- folders -----------------------------------------------------------------------------------------------------


def write_llama(
    folder: Path,
    *,
    blocks: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 128,
    vocab: int = 96,
    tied: bool = True,
    form: Form = "safetensors",
    dtype: torch.dtype = torch.float32,
    rope_scaling: Mapping[str, Any] | None = None,
    max_positions: int = 256,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    duplicate_schedule: Sequence[int] | None = None,
    share_storage: bool = False,
    config_extra: Mapping[str, Any] | None = None,
    tokenizer: TokenizerKind | None = "json",
    seed: int = 0,
) -> Path:
    """A Llama as `save_pretrained` would have written it.

    Args:
        blocks: distinct blocks.
        tied: no lm_head tensor, and the config says so.
        duplicate_schedule: write block i of the file as block `duplicate_schedule[i]`, so (0, 0, 1, 1) is two blocks,
            each stored twice.
        share_storage: with a schedule and a .bin form, the copies lie over one storage.
        config_extra: laid over config.json; a value of None is written as null.
    """
    tensors = llama_tensors(
        blocks=blocks,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab=vocab,
        tied=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        seed=seed,
    )
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if duplicate_schedule is not None:
        tensors = in_schedule(tensors, duplicate_schedule, share_storage=share_storage)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": blocks if duplicate_schedule is None else len(duplicate_schedule),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **({"head_dim": head_dim} if head_dim else {}),
        "vocab_size": vocab,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None if rope_scaling is None else dict(rope_scaling),
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "tie_word_embeddings": tied,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **(config_extra or {}),
    }
    return _write_folder(folder, config, tensors, form, tokenizer, vocab)


def write_mobilellm(
    folder: Path,
    *,
    dialect: Literal["hub", "github"] = "hub",
    layer_sharing: bool = False,
    share_embedding: bool = True,
    blocks: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    vocab: int = 96,
    form: Form = "bin",
    dtype: torch.dtype = torch.float32,
    max_positions: int = 256,
    redundant_head: Literal["equal", "different"] | None = None,
    duplicate_schedule: Sequence[int] | None = None,
    share_storage: bool = False,
    config_extra: Mapping[str, Any] | None = None,
    tokenizer: TokenizerKind | None = "sentencepiece",
    seed: int = 0,
) -> Path:
    """A MobileLLM as released: facts/peers.md 4.1, facts/architectures.md 1.

    Args:
        dialect: "hub" says model_type mobilellm, names custom code in auto_map and states both sharing flags;
            "github" says model_type llama and states neither.
        layer_sharing: "hub" only: each of `blocks` stored blocks runs twice in a row.
        share_embedding: no head tensor; the config says tie_word_embeddings false all the same.
        redundant_head: an lm_head tensor although the embedding is shared, as the 1B file has.
    """
    tensors = llama_tensors(
        blocks=blocks,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        vocab=vocab,
        tied=share_embedding,
        seed=seed,
    )
    if redundant_head is not None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if redundant_head == "different":
            tensors["lm_head.weight"] += 0.01
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if duplicate_schedule is not None:
        tensors = in_schedule(tensors, duplicate_schedule, share_storage=share_storage)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": max_positions,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": blocks if duplicate_schedule is None else len(duplicate_schedule),
        "num_key_value_heads": kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.34.1",
        "use_cache": True,
        "vocab_size": vocab,
    }
    if dialect == "hub":
        config |= {
            "architectures": ["MobileLLMForCausalLM"],
            "attention_dropout": 0.0,
            "auto_map": {
                "AutoConfig": "configuration_mobilellm.MobileLLMConfig",
                "AutoModelForCausalLM": "modeling_mobilellm.MobileLLMForCausalLM",
            },
            "head_dim": hidden // heads,
            "layer_sharing": layer_sharing,
            "mlp_bias": False,
            "model_type": "mobilellm",
            "share_embedding": share_embedding,
            "transformers_version": "4.41.2",
            "use_cache": not layer_sharing,
        }
    _write_folder(folder, config | dict(config_extra or {}), tensors, form, tokenizer, vocab)
    if dialect == "hub":
        for module in ("configuration_mobilellm", "modeling_mobilellm"):
            (folder / f"{module}.py").write_text('raise AssertionError("code of a checkpoint was run")\n')
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": BOS, "eos_token_id": EOS}))
    return folder


def _write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    form: Form,
    tokenizer: TokenizerKind | None,
    vocab: int,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(folder, tensors, form)
    if tokenizer == "json":
        write_tokenizer_json(folder, vocab)
    elif tokenizer == "sentencepiece":
        write_tokenizer_model(folder, vocab)
    return folder


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], form: Form = "safetensors") -> None:
    """The weight files of a folder; "sharded" is two safetensors shards and their index."""
    from safetensors.torch import save_file

    if form in ("bin", "legacy-bin"):
        torch.save(dict(tensors), folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
        return
    if form == "safetensors":
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    total = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )


# --- tokenizers --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def bpe_vocabulary(vocab: int = 96) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges of a byte-level BPE of lower case, digits and a few signs, in at most `vocab` tokens."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-:", "Ġ", "Ċ"]
    tokens, merges = SPECIAL + letters, []
    words = [[*("Ġ" + word)] for word in CORPUS.split()]
    while len(tokens) < vocab:
        pairs = [pair for word in words for pair in pairwise(word)]
        if not pairs:
            break
        left, right = max(sorted(set(pairs)), key=pairs.count)
        merges.append(f"{left} {right}")
        tokens.append(left + right)
        for word in words:
            for at in range(len(word) - 2, -1, -1):
                if word[at : at + 2] == [left, right]:
                    word[at : at + 2] = [left + right]
    assert len(tokens) <= vocab, f"the tiny tokenizer needs {len(tokens)} tokens, the model has {vocab}"
    return tuple(tokens), tuple(merges)


def write_tokenizer_json(folder: Path, vocab: int = 96) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json, as `save_pretrained` lays them out."""
    tokens, merges = bpe_vocabulary(vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(SPECIAL)],
        "normalizer": {"type": "NFC"},  # as Qwen's
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": list(merges),
        },
    }
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named}))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))


@lru_cache(maxsize=8)
def sentencepiece_model(vocab: int = 96, *, byte_fallback: bool = False) -> bytes:
    """A SentencePiece BPE model with Llama's settings: identity normalization, a blank before the text.

    With `byte_fallback` the vocabulary needs 256 tokens more.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([f"{CORPUS}{number}" for number in range(50)]),
        model_writer=model,
        vocab_size=vocab,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=byte_fallback,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer_model(folder: Path, vocab: int = 96) -> None:
    """tokenizer.model and MobileLLM's two files beside it."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocab))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))


# --- GGUF --------------------------------------------------------------------------------------------------------

GGUF_STEMS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    *,
    blocks: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 128,
    vocab: int = 96,
    tied: bool = True,
    weight_type: Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"] = "F32",
    rope_scaling: Mapping[str, Any] | None = None,
    rope_factors: Sequence[float] | None = None,
    max_positions: int = 256,
    attention_bias: bool = False,
    tokenizer: Literal["gpt2", "llama"] | None = "gpt2",
    pre: str | None = "smollm",
    architecture: str = "llama",
    metadata_extra: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """The llama that `write_llama` writes with the same arguments, as llama.cpp's converter would write it.

    Args:
        weight_type: of every matrix; norms and biases stay F32.
        rope_scaling: {"type": ..., "factor": ...}, as metadata.
        rope_factors: written as rope_freqs.weight.
        pre: tokenizer.ggml.pre, for the "gpt2" kind.
        metadata_extra: further keys; strings, numbers and lists of them.
    """
    import gguf

    head_dim = head_dim or hidden // heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(blocks)
    writer.add_context_length(max_positions)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_license("cc-by-nc-4.0")
    if rope_scaling is not None:
        writer.add_string(f"{architecture}.rope.scaling.type", rope_scaling["type"])
        writer.add_float32(f"{architecture}.rope.scaling.factor", rope_scaling["factor"])
    _add_tokenizer(writer, tokenizer, pre, vocab)
    for key, value in (metadata_extra or {}).items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(value.__class__, writer.add_array)(key, value)

    tensors = llama_tensors(
        blocks=blocks,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab=vocab,
        tied=tied,
        attention_bias=attention_bias,
        seed=seed,
    )
    kind = gguf.GGMLQuantizationType[weight_type]
    for name, tensor in tensors.items():
        values = tensor.numpy()
        rows = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name.split(".", 3)[-1].rpartition(".")[0])
        if rows is not None:
            values = values[_pairs(rows, head_dim)]
        stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), gguf.quantize(values, stored), raw_dtype=stored)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pairs(heads: int, head_dim: int) -> list[int]:
    """Row order of llama.cpp's rotary embedding: row i of a head's first half beside row i of its second."""
    half = head_dim // 2
    return [head * head_dim + row + offset for head in range(heads) for row in range(half) for offset in (0, half)]


def _gguf_name(name: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, suffix = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{suffix}"
    _, _, block, stem = stem.split(".", 3)
    return f"blk.{block}.{GGUF_STEMS[stem]}.{suffix}"


def _add_tokenizer(writer: Any, tokenizer: str | None, pre: str | None, vocab: int) -> None:
    if tokenizer is None:
        return
    writer.add_tokenizer_model(tokenizer)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNK)
    if tokenizer == "gpt2":
        tokens, merges = bpe_vocabulary(vocab)
        writer.add_token_list(list(tokens))
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
        writer.add_token_merges(list(merges))
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        return
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(sentencepiece_model(vocab, byte_fallback=vocab > 320))
    writer.add_token_list([piece.piece for piece in proto.pieces])
    writer.add_token_scores([piece.score for piece in proto.pieces])
    writer.add_token_types([piece.type for piece in proto.pieces])
