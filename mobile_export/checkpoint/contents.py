"""What a checkpoint holds: the values every later step reads, whatever the file format was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainedCodes:
    """The codes and scales quantization-aware training chose for a matrix: value = code * scale.

    bits: 4 or 8, the least that holds the codes. group_size: inputs that share a scale; None: one scale per output channel.
    read: codes int8 (out_features, in_features), scales float32 (out_features, groups), finite and above 0; checked when read.
    """

    bits: Literal[4, 8]
    group_size: int | None
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: described, and read only when asked.

    name: as Hugging Face spells it, e.g. "model.layers.4.self_attn.k_proj.weight", whatever the file says.
    shape: as a Linear stores it, (out_features, in_features).
    dtype: as stored: "F16", "BF16", "F32", ... or a GGUF type such as "Q4_1".
    where: "file: tensor name in that file", for error lines.
    storage: equal for two names that lie over the same bytes of the same file, in the same layout.
    raw: the stored bytes, uint8, 1-D, row-major, mapped where the format allows it: for one dtype and shape equal
        bytes are equal values, so two tensors can be compared without converting either.
    alias_of: the kept name, where safetensors' `save_model` dropped this one and noted it in the metadata.
    trained: the codes it was trained to have; `read` then gives their float32 values.
    read: the values in their stored dtype (float32 for GGUF quantized types); mapped from the file where the
        format allows it, so hold the result only as long as it is needed. Do not write into it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    where: str
    storage: tuple[object, ...]
    read: Callable[[], torch.Tensor]
    raw: Callable[[], torch.Tensor]
    alias_of: str | None = None
    trained: TrainedCodes | None = None


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as files, ready to be laid beside an artifact.

    files: file name -> content. Holds "tokenizer.json" or "tokenizer.model"; "tokenizer_config.json",
        "special_tokens_map.json" and "chat_template.jinja" where the checkpoint has them.
    vocab_size: highest token id the tokenizer can give, plus one.
    eos_ids: as the tokenizer itself declares them; generation_config.json may say more.
    adds_bos: whether the model expects bos_id before a text that is not a chat turn. `encode` never adds it.
    """

    files: Mapping[str, bytes]
    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    chat_template: str | None
    adds_bos: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A trained checkpoint, opened and validated; no weight has been read yet.

    source: what the user named.
    config: config.json as a dict; for a GGUF file its metadata in config.json's words.
    tensors: by Hugging Face name.
    tokenizer: None where the checkpoint has none.
    bos_id, eos_ids: generation_config.json first, then config.json, then the tokenizer. eos_ids may be empty.
    licence: identifier or first line of the licence, where one is found.
    files: every file that decides the result, for the manifest's SHA-256 list.
    warnings: one line each, for the user.
    """

    source: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    licence: str | None
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
