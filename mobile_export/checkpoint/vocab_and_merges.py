"""A byte-level BPE as two files, vocab.json and merges.txt, made into a tokenizer.json: GPT-2, OPT, Cerebras-GPT, Qwen2.

The two files do not say how a text is cut before its bytes are merged; the tokenizer's class does. A class we do not know
gives no tokenizer: one that cuts differently would load, and feed the model tokens it never saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.cuts import GPT2, GPT2_BYTES, QWEN2, Cut
from mobile_export.checkpoint.strict_json import DAMAGED, parse_object
from mobile_export.checkpoint.tokenizer_json import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    SpecialIds,
    Vocabulary,
    byte_level_bpe,
    tokenizer_config_json,
)
from mobile_export.errors import InputError

VOCAB, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
GPT2_NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
# class -> how it cuts, and the special tokens it has where no file names them; transformers' tokenization_*.py
CLASSES: dict[str, tuple[Cut, Mapping[str, str]]] = {
    "GPT2Tokenizer": (GPT2, GPT2_NAMES),
    "CodeGenTokenizer": (GPT2, GPT2_NAMES),
    "Qwen2Tokenizer": (QWEN2, {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
}
# The class of a model whose files name none.
OF_MODEL = {
    "gpt2": "GPT2Tokenizer",
    "gpt_neo": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "phi": "CodeGenTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def tokenizer_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The class of a folder's tokenizer as transformers finds it, without "Fast"; None where nothing says."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class") or OF_MODEL.get(str(config.get("model_type")))
    return named.removesuffix("Fast") if isinstance(named, str) else None


def with_defaults(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the special tokens of a class in CLASSES where they name none."""
    return {**CLASSES[name][1], **settings}


def convert_vocab_and_merges(name: str, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """tokenizer.json and tokenizer_config.json that give the ids of transformers' class `name`.

    Args:
        name: one of CLASSES.
        files: VOCAB and MERGES; ADDED where there is one.
        settings: as with_defaults gives them.
    Raises:
        InputError: a file is damaged, the ids leave a gap, or a merge is not of two tokens into a third.
    """
    cut = CLASSES[name][0]
    if cut is GPT2 and settings.get("add_prefix_space") is True:
        cut = dataclasses.replace(cut, pre_tokenizer={**GPT2_BYTES, "add_prefix_space": True})
    ids = _ids(VOCAB, parse_object(VOCAB, files[VOCAB]))
    merges = _merges(files[MERGES], ids)
    added = _added_tokens(files, settings, ids)
    ids |= {token: index for index, (token, _) in added.items()}
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        gap = next(place for place, token in enumerate(tokens) if ids[token] != place)
        raise InputError(VOCAB, f"no token, or more than one, has the id {gap}", DAMAGED)
    types = [NORMAL] * len(tokens)
    for index, (_, said) in added.items():
        types[index] = CONTROL if said.get("special", True) else USER_DEFINED
    flags = {index: {flag: said[flag] for flag in FLAGS if type(said.get(flag)) is bool} for index, (_, said) in added.items()}
    bos, eos = (ids.get(str(token_text(settings.get(key)))) for key in ("bos_token", "eos_token"))
    adds_bos, adds_eos = (settings.get(f"add_{key}_token") is True for key in ("bos", "eos"))
    special = SpecialIds(bos, eos, None, adds_bos=adds_bos, adds_eos=adds_eos)
    vocabulary = Vocabulary(tokens, types, flags=flags)
    return byte_level_bpe(vocabulary, merges, special, cut), tokenizer_config_json(vocabulary, special, None, None)


def token_text(value: object) -> str | None:
    """A token as text or as {"content": text, ...}."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _ids(where: str, content: Mapping[str, Any]) -> dict[str, int]:
    if not all(type(index) is int and index >= 0 for index in content.values()):
        raise InputError(where, "does not map tokens to ids", DAMAGED)
    return dict(content)


def _merges(content: bytes, ids: Mapping[str, int]) -> list[str]:
    """The lines of merges.txt, after the "#version" line some files begin with."""
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(MERGES, f"is not UTF-8 text (byte {error.start})", DAMAGED) from None
    merges = []
    for number, line in enumerate(lines, 1):
        merge = line.removesuffix("\r")
        if not merge or (number == 1 and merge.startswith("#version")):
            continue
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise InputError(MERGES, f"line {number}, {merge!r}, is not of two tokens into a third", DAMAGED)
        merges.append(merge)
    return merges


def _added_tokens(
    files: Mapping[str, bytes], settings: Mapping[str, Any], ids: Mapping[str, int]
) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """id -> text and flags of every token that is found in a text before it is cut.

    A special token that is named and has no id is left out: transformers would append it, beyond the embedding's rows.
    """
    known = dict(ids) | (_ids(ADDED, parse_object(ADDED, files[ADDED])) if ADDED in files else {})
    added: dict[int, tuple[str, Mapping[str, Any]]] = {known[token]: (token, {}) for token in known.keys() - ids.keys()}
    for value in [*(settings.get(key) for key in NAMED), *(each for key in LISTED for each in _values(settings.get(key)))]:
        token = token_text(value)
        if token in known:
            added[known[token]] = (token, {**(value if isinstance(value, dict) else {}), "special": True})
    decoder = settings.get("added_tokens_decoder")
    for index, value in (decoder if isinstance(decoder, dict) else {}).items():
        token = token_text(value) if isinstance(value, dict) else None
        if not index.isdecimal() or not token or known.get(token, int(index)) != int(index):
            raise InputError("tokenizer_config.json", f"added_tokens_decoder has no token for {index!r}", DAMAGED)
        added[int(index)] = (token, {"special": False, **value})
    return added


def _values(listed: object) -> list[Any]:
    """A list of tokens, or what transformers 5 writes: a name for each."""
    return list(listed.values()) if isinstance(listed, dict) else listed if isinstance(listed, list) else []
