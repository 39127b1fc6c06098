"""The tokenizer inside a GGUF file, as tokenizer.json and tokenizer_config.json.

How a text is cut before its bytes are merged is not in the file, only its name is. A name we do not know gives no
tokenizer: one that cuts differently would load, and feed the model tokens it never saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.contents import Tokenizer
from mobile_export.checkpoint.cuts import GPT2, LLAMA3, QWEN2, SMOLLM
from mobile_export.checkpoint.gguf_config import CONVERT, token_id
from mobile_export.checkpoint.tokenizer_json import (
    NORMAL,
    SpecialIds,
    Vocabulary,
    byte_level_bpe,
    sentencepiece_bpe,
    tokenizer_config_json,
)
from mobile_export.errors import InputError

# Each as the model's own tokenizer.json has it. "default" is not here: llama.cpp writes it where it does not know.
CUTS = {
    "gpt-2": GPT2,
    "llama-bpe": LLAMA3,
    "llama-v3": LLAMA3,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
    "smollm": SMOLLM,
}


def tokenizer_from_metadata(where: str, metadata: Mapping[str, Any]) -> tuple[Tokenizer | None, list[str]]:
    """Build the tokenizer of a GGUF file.

    Args:
        where: file name, for errors and warnings.
    Returns:
        The tokenizer, or None and a warning that says why.
    Raises:
        InputError: the vocabulary is damaged.
    """
    if "tokenizer.ggml.model" not in metadata:
        return None, [f"{where}: holds no tokenizer"]
    if (kind := _unknown_kind(metadata)) is not None:
        return None, [f"{where}: tokenizer not read: {kind} is not a kind we know"]
    vocabulary = _vocabulary(where, metadata)
    cut = CUTS[metadata["tokenizer.ggml.pre"]] if metadata["tokenizer.ggml.model"] == "gpt2" else None
    special = SpecialIds(
        bos=token_id(where, metadata, "bos"),
        eos=token_id(where, metadata, "eos"),
        unknown=token_id(where, metadata, "unknown") if cut is None else None,
        # llama.cpp's default where the file does not say.
        adds_bos=metadata.get("tokenizer.ggml.add_bos_token", cut.adds_bos if cut else True) is True,
        adds_eos=metadata.get("tokenizer.ggml.add_eos_token", False) is True,
    )
    # The token that ends a turn ends the text as well; llama.cpp stops at either.
    stops = [special.eos, token_id(where, metadata, "eot")]
    for index in (special.bos, special.unknown, *stops):
        if index is not None and index >= len(vocabulary.tokens):
            raise InputError(where, f"token id {index} is beyond its {len(vocabulary.tokens):,} tokens", CONVERT)
    if cut is not None:
        merges = _merges(where, metadata, vocabulary)
        content = byte_level_bpe(vocabulary, merges, special, cut)
    else:
        prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
        content = sentencepiece_bpe(vocabulary, special, add_space_prefix=prefix)
    template = metadata.get("tokenizer.chat_template")
    chat_template = template if isinstance(template, str) else None
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    config = tokenizer_config_json(vocabulary, special, chat_template, context if isinstance(context, int) else None)
    return (
        Tokenizer(
            files={"tokenizer.json": content, "tokenizer_config.json": config},
            vocab_size=len(vocabulary.tokens),
            bos_id=special.bos,
            eos_ids=tuple(dict.fromkeys(index for index in stops if index is not None)),
            chat_template=chat_template,
            adds_bos=special.adds_bos and special.bos is not None,
        ),
        [],
    )


def _unknown_kind(metadata: Mapping[str, Any]) -> str | None:
    """Why we would get this tokenizer wrong, or None."""
    model, pre = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
    if model == "gpt2":
        return None if isinstance(pre, str) and pre in CUTS else f"gpt2 with pre-tokenizer {pre!r}"
    if model != "llama":
        return repr(model)
    normalizes = metadata.get("tokenizer.ggml.precompiled_charsmap") or metadata.get("tokenizer.ggml.remove_extra_whitespaces")
    return "llama with a normalizer" if normalizes else None


def _vocabulary(where: str, metadata: Mapping[str, Any]) -> Vocabulary:
    tokens = _array(where, metadata, "tokens", str, None)
    if len(set(tokens)) < len(tokens):
        twice, _ = Counter(tokens).most_common(1)[0]
        raise InputError(where, f"token {twice!r} occurs twice", CONVERT)
    types = _array(where, metadata, "token_type", int, [NORMAL] * len(tokens))
    scores = _array(where, metadata, "scores", float, [0.0] * len(tokens))
    if not len(tokens) == len(types) == len(scores):
        raise InputError(where, f"{len(tokens)} tokens, {len(types)} types and {len(scores)} scores differ", CONVERT)
    return Vocabulary(tokens, types, scores)


def _merges(where: str, metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[str]:
    merges = _array(where, metadata, "merges", str, None)
    known = set(vocabulary.tokens)
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise InputError(where, f"merge {merge!r} is not of two tokens into a third", CONVERT)
    return merges


def _array(where: str, metadata: Mapping[str, Any], key: str, kind: type, default: list[Any] | None) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise InputError(where, f"tokenizer.ggml.{key} is not an array of {kind.__name__}", CONVERT)
    return value
