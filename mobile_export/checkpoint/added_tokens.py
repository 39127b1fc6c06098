"""Added tokens whose ids lie beyond the embedding's rows, left out of a tokenizer that can do without them.

Gemma 3's text models carry one: `<image_soft_token>`, id 262144 of a table of 262144 rows. Fine-tuning scripts add a
`[PAD]` the same way. Nothing but their own text gives such ids, and a row that is not there cannot be looked up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mobile_export.checkpoint.contents import Tokenizer
from mobile_export.checkpoint.strict_json import parse_object
from mobile_export.checkpoint.tokenizer import JSON, count_ids, load_tokenizer_json

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


def without_tokens_beyond(tokenizer: Tokenizer, rows: int) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer without added tokens of ids from `rows` on, and a warning that names them.

    It comes back as it is where that would not do: a token of the vocabulary itself lies beyond, or one that ends or
    begins a text, stands in the chat template, or is set around every text.
    """
    if JSON not in tokenizer.files or tokenizer.vocab_size <= rows:
        return tokenizer, ()
    whole = parse_object(JSON, tokenizer.files[JSON])
    # By the library's ids: it numbers anew what the vocabulary lacks, whatever the file says.
    ids = load_tokenizer_json(tokenizer.files[JSON]).get_vocab(with_added_tokens=True)
    added = [token["content"] for token in whole["added_tokens"]]
    beyond = {text: ids[text] for text in added if ids.get(text, 0) >= rows}
    if any(_is_needed(tokenizer, whole, text, index) for text, index in beyond.items()):
        return tokenizer, ()
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] not in beyond]
    if (whole.get("padding") or {}).get("pad_token") in beyond:
        whole["padding"] = None
    content = json.dumps(whole, ensure_ascii=False).encode("utf-8")
    left = count_ids(content)
    if left > rows:
        return tokenizer, ()
    files = {name: _without(name, text, beyond) if name in SETTINGS else text for name, text in tokenizer.files.items()}
    what = ", ".join(f"{text} (id {index})" for text, index in sorted(beyond.items(), key=lambda item: item[1])[:3])
    more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
    warning = f"{JSON}: {what}{more} left out: the embedding has {rows} rows"
    return replace(tokenizer, files={**files, JSON: content}, vocab_size=left), (warning,)


def _is_needed(tokenizer: Tokenizer, whole: Mapping[str, Any], text: str, index: int) -> bool:
    """Whether a prompt would miss the token: it begins or ends a text, or the template or the post-processor writes it."""
    if index in (tokenizer.bos_id, *tokenizer.eos_ids) or text in (tokenizer.chat_template or ""):
        return True
    return json.dumps(text, ensure_ascii=False) in json.dumps(whole.get("post_processor"), ensure_ascii=False)


def _without(name: str, content: bytes, beyond: Mapping[str, int]) -> bytes:
    """A settings file without these tokens: a library that reads it would append them again."""
    return json.dumps(_pruned(parse_object(name, content), beyond), ensure_ascii=False, indent=2).encode("utf-8")


def _pruned(value: Any, beyond: Mapping[str, int]) -> Any:
    def names_one(item: object) -> bool:
        text = item.get("content") if isinstance(item, dict) else item
        return isinstance(text, str) and text in beyond

    if isinstance(value, dict):
        return {key: _pruned(item, beyond) for key, item in value.items() if not names_one(item)}
    return [item for item in value if not names_one(item)] if isinstance(value, list) else value
