"""Tokenizer files of a folder, and text to ids and back with either kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mobile_export.checkpoint.contents import Tokenizer
from mobile_export.checkpoint.sentencepiece_model import convert_sentencepiece
from mobile_export.checkpoint.strict_json import DAMAGED, parse_object, read_file
from mobile_export.checkpoint.vocab_and_merges import (
    ADDED,
    CLASSES,
    MERGES,
    VOCAB,
    convert_vocab_and_merges,
    token_text,
    tokenizer_class,
    with_defaults,
)
from mobile_export.errors import InputError

JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> tuple[Tokenizer | None, list[Path], list[str]]:
    """The folder's tokenizer: tokenizer.json before tokenizer.model before vocab.json with merges.txt.

    Args:
        config: config.json, which may say whose vocab.json it is.
    Returns:
        The tokenizer or None, the files it came from, and warnings.
    Raises:
        InputError: a tokenizer file is damaged.
    """
    kinds = ((JSON,), (SENTENCEPIECE,), (VOCAB, MERGES))
    mains = next((names for names in kinds if all((folder / name).is_file() for name in names)), None)
    if mains is None:
        return None, [], [f"{folder}: has no {JSON}, {SENTENCEPIECE} or {VOCAB} with {MERGES}, so the artifact will have none"]
    beside = (ADDED, *BESIDE) if mains == (VOCAB, MERGES) else BESIDE
    paths = [folder / name for name in (*mains, *beside) if (folder / name).is_file()]
    files = {path.name: read_file(path) for path in paths}
    settings = tokenizer_settings(files)
    if mains == (VOCAB, MERGES):
        name = tokenizer_class(settings, config)
        if name not in CLASSES:
            return None, [], [f"{VOCAB}: tokenizer not read: class {name} is not one we know; AutoTokenizer can save {JSON}"]
        settings = with_defaults(name, settings)
        content, made = convert_vocab_and_merges(name, files, settings)
        files = {"tokenizer_config.json": made, **{name: files[name] for name in BESIDE if name in files}, JSON: content}
    template = chat_template_in(files, settings)
    if SENTENCEPIECE not in mains:
        tokenizer, warnings = _from_json(files, settings, template)
    else:
        tokenizer, warnings = _from_sentencepiece(files, settings, template)
        if (folder / ADDED).is_file():
            warnings = [*warnings, f"{ADDED}: not used, {SENTENCEPIECE} cannot give its tokens"]
    return tokenizer, paths, warnings


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, without bos or eos around it.

    Special tokens spelled in the text become their ids with tokenizer.json, and stay text with tokenizer.model.
    """
    if JSON in tokenizer.files:
        ids: list[int] = load_tokenizer_json(tokenizer.files[JSON]).encode(text, add_special_tokens=False).ids
    else:
        ids = _load_sentencepiece(tokenizer.files[SENTENCEPIECE]).encode(text, out_type=int)
    return ids


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids; special tokens are left out."""
    if JSON in tokenizer.files:
        text: str = load_tokenizer_json(tokenizer.files[JSON]).decode(list(ids), skip_special_tokens=True)
    else:
        text = _load_sentencepiece(tokenizer.files[SENTENCEPIECE]).decode(list(ids))
    return text


def with_tokenizer_json(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, with a tokenizer.json among its files; converted where it has only tokenizer.model.

    Raises:
        InputError: tokenizer.model is of a kind tokenizer.json of ours cannot say.
    """
    if JSON in tokenizer.files:
        return tokenizer
    content, config = convert_sentencepiece(
        tokenizer.files[SENTENCEPIECE], adds_bos=tokenizer.adds_bos, chat_template=tokenizer.chat_template
    )
    # A tokenizer_config.json of the checkpoint's own stays: it may say more than we know.
    return replace(tokenizer, files={"tokenizer_config.json": config, **tokenizer.files, JSON: content})


@lru_cache(maxsize=4)
def load_tokenizer_json(content: bytes) -> Any:
    """A tokenizer.json as the library that wrote it has it, `tokenizers.Tokenizer`.

    Raises:
        InputError: it is damaged.
    """
    from tokenizers import Tokenizer as JsonTokenizer

    parse_object(JSON, content)  # says which line; the library does not
    try:
        return JsonTokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # noqa: BLE001 - the library raises no narrower type
        raise InputError(JSON, f"is not a tokenizer ({error})", DAMAGED) from None


def count_ids(content: bytes) -> int:
    """The highest id a tokenizer.json can give, plus one."""
    return max(load_tokenizer_json(content).get_vocab(with_added_tokens=True).values(), default=-1) + 1


@lru_cache(maxsize=4)
def _load_sentencepiece(content: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    if not content:  # the library makes a processor of it, without a model
        raise InputError(SENTENCEPIECE, "is empty", DAMAGED)
    try:
        return SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise InputError(SENTENCEPIECE, "is not a SentencePiece model", DAMAGED) from None


def _from_json(files: Mapping[str, bytes], settings: Mapping[str, Any], template: str | None) -> tuple[Tokenizer, list[str]]:
    loaded = load_tokenizer_json(files[JSON])
    ids, warnings = {}, []
    for key in ("bos_token", "eos_token"):
        token = token_text(settings.get(key))
        ids[key] = loaded.token_to_id(token) if token else None
        if token and ids[key] is None:
            warnings.append(f"tokenizer_config.json: {key} {token!r} is not in {JSON}")
    bos_id, eos_id = ids["bos_token"], ids["eos_token"]
    tokenizer = Tokenizer(
        files=files,
        vocab_size=count_ids(files[JSON]),
        bos_id=bos_id,
        eos_ids=() if eos_id is None else (eos_id,),
        chat_template=template,
        # What the file does, not what a setting beside it says.
        adds_bos=bos_id is not None and loaded.encode("").ids[:1] == [bos_id],
    )
    return tokenizer, warnings


def _from_sentencepiece(
    files: Mapping[str, bytes], settings: Mapping[str, Any], template: str | None
) -> tuple[Tokenizer, list[str]]:
    loaded = _load_sentencepiece(files[SENTENCEPIECE])
    bos_id, eos_id = loaded.bos_id(), loaded.eos_id()  # -1 where there is none
    tokenizer = Tokenizer(
        files=files,
        vocab_size=loaded.get_piece_size(),
        bos_id=None if bos_id < 0 else bos_id,
        eos_ids=() if eos_id < 0 else (eos_id,),
        chat_template=template,
        adds_bos=bos_id >= 0 and settings.get("add_bos_token", True) is True,  # LlamaTokenizer's default
    )
    return tokenizer, []


def tokenizer_settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json, which repeats part of it.

    Raises:
        InputError: one is no JSON object.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            settings |= {key: value for key, value in parse_object(name, files[name]).items() if value is not None}
    return settings


def chat_template_in(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | None:
    """The template of chat_template.jinja, else of the settings: the only one, or the one called "default" of a list."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", errors="replace")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(named, {}).get("template")
    return template if isinstance(template, str) else None
