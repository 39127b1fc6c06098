"""Step 2, recognise: Checkpoint -> DecoderSpec + weight map + what the config says of sharing.

A family is one file: MODEL_TYPES and `read(checkpoint) -> Recognised`, listed in FAMILIES below.
"""

from __future__ import annotations

import dataclasses
import difflib

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families import (
    bloom,
    falcon,
    gemma3,
    gpt2,
    gpt_neo,
    gpt_neox,
    lfm2,
    llama,
    llama4,
    mobilellm,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    rwkv,
    smollm3,
)
from mobile_export.families.spec import BlockSpec, DecoderSpec, Recognised, RopeSpec, RwkvSpec, SharingFlags, WeightSource
from mobile_export.families.take import Rows, Take
from mobile_export.families.vocabulary import settled

__all__ = [
    "FAMILIES",
    "BlockSpec",
    "DecoderSpec",
    "Recognised",
    "RopeSpec",
    "Rows",
    "RwkvSpec",
    "SharingFlags",
    "Take",
    "WeightSource",
    "recognise",
    "settle",
]

FAMILIES = (
    llama,
    mobilellm,
    smollm3,
    qwen2,
    qwen3,
    gemma3,
    phi,
    phi3,
    llama4,
    lfm2,
    gpt2,
    opt,
    gpt_neo,
    gpt_neox,
    bloom,
    falcon,
    rwkv,
)


def recognise(checkpoint: Checkpoint) -> Recognised:
    """Read a checkpoint with the family its `model_type` names, and hold every tensor's shape against the config.

    No weight is read. A config that asks for more than the file holds fails here, before anything is allocated.

    Raises:
        InputError: unknown model_type; a tensor that is missing, misshapen or unknown; a tokenizer with ids
            beyond the embedding's rows.
    """
    recognised = _read(checkpoint)
    _check_tensors(checkpoint, recognised)
    _check_vocabulary(checkpoint, recognised.spec)
    return recognised


def settle(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as `recognise` wants it where its parts count the vocabulary differently and it is clear who is right.

    Its warnings say what was changed, and what the config offers and the graph will not have.

    Raises:
        InputError: unknown model_type; a config its family refuses; table and head of different rows.
    """
    recognised = _read(checkpoint)
    checkpoint = settled(checkpoint, recognised)
    return dataclasses.replace(checkpoint, warnings=(*checkpoint.warnings, *recognised.notes))


def _read(checkpoint: Checkpoint) -> Recognised:
    model_type = checkpoint.config.get("model_type")
    by_type = {name: family for family in FAMILIES for name in family.MODEL_TYPES}
    if model_type not in by_type:
        close = difflib.get_close_matches(str(model_type), by_type, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        supported = ", ".join(sorted(by_type))
        raise InputError("config.json", f"model_type {model_type!r} is not supported", f"{hint}supported: {supported}")
    family = mobilellm if mobilellm.speaks(checkpoint.config) else by_type[model_type]
    return family.read(checkpoint)


def _check_tensors(checkpoint: Checkpoint, recognised: Recognised) -> None:
    used = set(recognised.ignored)
    for source in recognised.weights.values():
        for name, shape in zip(source.tensors, source.shapes, strict=True):
            if name not in checkpoint.tensors:
                what = f"tensor {name} is missing, and config.json implies it"
                raise InputError(checkpoint.source, what, "is the download complete, and the config this checkpoint's?")
            tensor = checkpoint.tensors[name]
            if tensor.shape != shape:
                what = f"shape is {list(tensor.shape)}, config.json implies {list(shape)}"
                raise InputError(tensor.where, what, "use the config.json this checkpoint was saved with")
            used.add(name)
    extra = sorted(set(checkpoint.tensors) - used)
    if extra:
        named = ", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
        what = f"family {recognised.spec.family!r} has no place for {named}"
        raise InputError(checkpoint.source, what, "check num_hidden_layers and model_type, or remove what is not a weight")


def _check_vocabulary(checkpoint: Checkpoint, spec: DecoderSpec | RwkvSpec) -> None:
    if checkpoint.tokenizer is not None and checkpoint.tokenizer.vocab_size > spec.vocab_size:
        what = f"the tokenizer gives ids up to {checkpoint.tokenizer.vocab_size - 1}, the embedding has {spec.vocab_size} rows"
        raise InputError(checkpoint.source, what, "resize the embedding, or use the tokenizer it was trained with")
    beyond = [i for i in (*checkpoint.eos_ids, checkpoint.bos_id or 0) if not 0 <= i < spec.vocab_size]
    if beyond:
        what = f"special token id {beyond[0]} is outside the embedding's {spec.vocab_size} rows"
        raise InputError(checkpoint.source, what, "correct bos_token_id and eos_token_id in config.json")
