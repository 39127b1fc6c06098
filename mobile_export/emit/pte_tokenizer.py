"""The tokenizer's files as ExecuTorch's own tokenizer can read them.

Its NFC normalizer (pytorch_tokenizers 1.5.0) takes characters apart and drops the marks: it reads "é" as "e", and of a
Korean syllable the first letter. What people type is composed already, so without the step its ids are the right ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mobile_export.checkpoint.strict_json import parse_object

JSON = "tokenizer.json"


def for_executorch(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, with NFC taken out of the normalizer of tokenizer.json; Qwen's tokenizers have it.

    A text that is not composed keeps its parts, which are other tokens than the model was trained with.
    """
    whole = parse_object(JSON, files[JSON]) if JSON in files else {}
    normalizer = whole.get("normalizer")
    if normalizer == (kept := _without_nfc(normalizer)):
        return dict(files)
    content = json.dumps({**whole, "normalizer": kept}, ensure_ascii=False).encode("utf-8")
    return {**files, JSON: content}


def _without_nfc(normalizer: Any) -> Any:
    if not isinstance(normalizer, dict) or normalizer.get("type") == "NFC":
        return None
    if normalizer.get("type") != "Sequence":
        return normalizer
    kept = [step for step in map(_without_nfc, normalizer["normalizers"]) if step is not None]
    return {**normalizer, "normalizers": kept} if kept else None
