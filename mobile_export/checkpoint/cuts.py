"""How byte-level tokenizers cut a text before they merge its bytes: known by name, never written beside the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GPT2_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split_then_bytes(pattern: str) -> dict[str, Any]:
    """Pre-tokenizer: cut by a regular expression, then spell bytes."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**GPT2_BYTES, "use_regex": False}]}


@dataclass(frozen=True)
class Cut:
    """Parts of a tokenizer.json, in its own words.

    ignore_merges: take a word that is a token whole, however its merges go.
    adds_bos: what llama.cpp takes a GGUF file for that does not say.
    """

    pre_tokenizer: Mapping[str, Any]
    normalizer: Mapping[str, Any] | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


# "'s" and its like, then words, numbers, other signs, and blanks: the same in all, apart from how numbers are cut.
GPT2 = Cut(GPT2_BYTES)
LLAMA3 = Cut(
    split_then_bytes(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    ignore_merges=True,
    adds_bos=True,
)
QWEN2 = Cut(
    split_then_bytes(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    normalizer={"type": "NFC"},
)
SMOLLM = Cut({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2_BYTES]})
