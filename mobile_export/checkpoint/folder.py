"""A Hugging Face folder as a Checkpoint: config.json, the weight files, the tokenizer, the licence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.checkpoint.licence import find_licence
from mobile_export.checkpoint.paretoq import with_paretoq_codes
from mobile_export.checkpoint.shards import read_weights
from mobile_export.checkpoint.strict_json import parse_object, read_file
from mobile_export.checkpoint.tokenizer import read_tokenizer
from mobile_export.checkpoint.torchao import with_torchao_codes
from mobile_export.errors import InputError


def open_folder(folder: Path, source: str, weights: Path | None = None) -> Checkpoint:
    """Open and validate; weights stay in their files.

    Args:
        weights: the .pt or .pth file of the folder to read, where the user named it.
    Raises:
        InputError: config.json, a weight file or a tokenizer file is missing or damaged, or the weights are
            already quantized.
    """
    if not (folder / "config.json").is_file():
        if weights:
            raise InputError(source, "has no config.json beside it", "put the model's config.json there")
        raise InputError(str(folder), "has no config.json", _next_step(folder))
    config = parse_object("config.json", read_file(folder / "config.json"))
    if not isinstance(config.get("model_type"), str):
        raise InputError("config.json", "has no model_type", "take config.json from the original model")
    _refuse_quantized(config)
    tensors, files, warnings = read_weights(folder, weights)
    tensors, of_torchao = with_torchao_codes(tensors, files)
    tensors, of_paretoq = with_paretoq_codes(config, tensors)
    tokenizer, tokenizer_files, tokenizer_warnings = read_tokenizer(folder, config)

    generation: Mapping[str, Any] = {}
    generation_files = []
    if (folder / "generation_config.json").is_file():
        generation = parse_object("generation_config.json", read_file(folder / "generation_config.json"))
        generation_files = [folder / "generation_config.json"]
    bos_ids = (
        _token_ids("generation_config.json", "bos_token_id", generation)
        or _token_ids("config.json", "bos_token_id", config)
        or ((tokenizer.bos_id,) if tokenizer and tokenizer.bos_id is not None else ())
    )
    eos_ids = (
        _token_ids("generation_config.json", "eos_token_id", generation)
        or _token_ids("config.json", "eos_token_id", config)
        or (tokenizer.eos_ids if tokenizer else ())
    )
    return Checkpoint(
        source=source,
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=eos_ids,
        licence=find_licence(folder),
        files=(folder / "config.json", *generation_files, *files, *tokenizer_files),
        warnings=(*_custom_code(config), *warnings, *of_torchao, *of_paretoq, *tokenizer_warnings),
    )


def _refuse_quantized(config: Mapping[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        if settings := config.get(key):
            method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else "unnamed"
            if method == "torchao":
                continue  # torchao.py takes the codes as they are
            raise InputError(
                "config.json", f"weights are already quantized ({method})", "export the unquantized original instead"
            )


def _custom_code(config: Mapping[str, Any]) -> list[str]:
    """A note on code the folder brings along; it is neither imported nor needed."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or not auto_map:
        return []
    return [f"config.json: auto_map names Python code ({', '.join(map(str, auto_map.values()))}): never imported"]


def _token_ids(where: str, key: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """One id, several or none, as config files spell all three."""
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise InputError(where, f"{key} is {value!r}, not a token id", "correct the file")
    return tuple(ids)


def _next_step(folder: Path) -> str:
    if found := sorted(folder.glob("*.gguf")):
        return f"give the file: {found[0]}"
    if (folder / "adapter_config.json").is_file():
        return "this is an adapter: merge it into its base model first (peft: merge_and_unload, then save_pretrained)"
    return "give a folder that model.save_pretrained(folder) wrote, or a .gguf file"
