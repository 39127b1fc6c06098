"""tokenizer.json for a vocabulary that came without one: byte-level BPE or SentencePiece BPE.

Written for the runtimes that read it (Hugging Face tokenizers, ExecuTorch, swift-transformers, onnxruntime-genai): only
parts that all of them know, and merges as "left right", the spelling every version reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mobile_export.checkpoint.cuts import GPT2_BYTES, Cut

# Token types as SentencePiece numbers them; GGUF took the numbers over.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "\u2581"  # how SentencePiece spells a blank


@dataclass(frozen=True)
class Vocabulary:
    """tokens: text by id, each once. types: NORMAL, CONTROL, ... by id. scores: best first, for SentencePiece only.

    flags: id -> what tokenizer.json says of how an added token is found in a text, e.g. {"lstrip": True}.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    flags: Mapping[int, Mapping[str, bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class SpecialIds:
    """Ids with a meaning, and whether the model was trained with them around a text."""

    bos: int | None
    eos: int | None
    unknown: int | None
    adds_bos: bool
    adds_eos: bool


def byte_level_bpe(vocabulary: Vocabulary, merges: Sequence[str], special: SpecialIds, cut: Cut) -> bytes:
    """GPT-2's kind: text is UTF-8 bytes, each byte a printable character.

    Args:
        merges: "left right", in the order they were learned.
        cut: how a text is cut before merging; part of what the model was trained with.
    """
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": cut.ignore_merges,
        "vocab": {token: index for index, token in enumerate(vocabulary.tokens)},
        "merges": list(merges),
    }
    return _tokenizer_json(vocabulary, special, model, cut.normalizer, cut.pre_tokenizer, GPT2_BYTES)


def sentencepiece_bpe(vocabulary: Vocabulary, special: SpecialIds, *, add_space_prefix: bool) -> bytes:
    """Llama's kind: SentencePiece BPE with identity normalization; merges are recovered from the scores.

    Args:
        add_space_prefix: "word" is read as " word", so that it is one token wherever it stands.
    """
    byte_fallback = sum(kind == BYTE for kind in vocabulary.types) == 256
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if special.unknown is None else vocabulary.tokens[special.unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(vocabulary.tokens)},
        "merges": [f"{left} {right}" for left, right in merges_from_scores(vocabulary)],
    }
    # Prepend puts the blank before every stretch between special tokens, as llama.cpp and Llama's own file do.
    spell_blank = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer = {
        "type": "Sequence",
        "normalizers": [*([{"type": "Prepend", "prepend": SPACE}] if add_space_prefix else []), spell_blank],
    }
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_space_prefix else []),
        ],
    }
    return _tokenizer_json(vocabulary, special, model, normalizer, None, decoder)


def merges_from_scores(vocabulary: Vocabulary) -> Iterable[tuple[str, str]]:
    """Every way to make a token of two others, best score first.

    SentencePiece stores no merges: it joins the neighbours whose union has the best score. Ranking all pairs by that
    score is the same rule. Source: sentencepiece src/bpe_model.cc; the order of equal scores as transformers has it.
    """
    normal = {token: index for index, token in enumerate(vocabulary.tokens) if vocabulary.types[index] == NORMAL}
    pairs = [
        (-vocabulary.scores[index], normal[token[:cut]], normal[token[cut:]], token[:cut], token[cut:])
        for token, index in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]


def _tokenizer_json(
    vocabulary: Vocabulary,
    special: SpecialIds,
    model: Mapping[str, Any],
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any] | None,
    decoder: Mapping[str, Any],
) -> bytes:
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": vocabulary.types[index] != USER_DEFINED,
                **vocabulary.flags.get(index, {}),
            }
            for index, token in enumerate(vocabulary.tokens)
            if vocabulary.types[index] in (CONTROL, USER_DEFINED) or index == special.unknown
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _post_processor(vocabulary, special),
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False).encode("utf-8")


def _post_processor(vocabulary: Vocabulary, special: SpecialIds) -> dict[str, Any] | None:
    """bos and eos around one text, where the model was trained with them."""
    before = [special.bos] if special.adds_bos and special.bos is not None else []
    after = [special.eos] if special.adds_eos and special.eos is not None else []
    if not before and not after:
        return None

    def around(sequence: str, number: int) -> list[dict[str, Any]]:
        def token(index: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": vocabulary.tokens[index], "type_id": number}}

        return [*map(token, before), {"Sequence": {"id": sequence, "type_id": number}}, *map(token, after)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            vocabulary.tokens[index]: {
                "id": vocabulary.tokens[index],
                "ids": [index],
                "tokens": [vocabulary.tokens[index]],
            }
            for index in before + after
        },
    }


def tokenizer_config_json(
    vocabulary: Vocabulary, special: SpecialIds, chat_template: str | None, max_positions: int | None
) -> bytes:
    """tokenizer_config.json for a tokenizer.json of ours."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if special.bos is None else vocabulary.tokens[special.bos],
        "eos_token": None if special.eos is None else vocabulary.tokens[special.eos],
        "unk_token": None if special.unknown is None else vocabulary.tokens[special.unknown],
        "add_bos_token": special.adds_bos,
        "add_eos_token": special.adds_eos,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
        "model_max_length": max_positions,
    }
    stated = {key: value for key, value in config.items() if value is not None}
    return json.dumps(stated, ensure_ascii=False, indent=2).encode("utf-8")
