"""The weight files of a folder: one file, an index that says which shard holds which tensor, or a training script's .pt."""

from __future__ import annotations

from pathlib import Path

from mobile_export.checkpoint.contents import StoredTensor
from mobile_export.checkpoint.safetensors_file import read_safetensors
from mobile_export.checkpoint.strict_json import DAMAGED, parse_object, read_file
from mobile_export.checkpoint.torch_file import read_torch
from mobile_export.checkpoint.training_file import SUFFIXES, read_training_file
from mobile_export.errors import InputError

# In transformers' order, so both read the same file where a folder holds several.
SINGLE_THEN_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
WEIGHT_FILES = [name for pair in SINGLE_THEN_INDEX for name in pair]


def read_weights(folder: Path, named: Path | None = None) -> tuple[dict[str, StoredTensor], list[Path], list[str]]:
    """Describe every tensor of the folder.

    Args:
        named: the .pt or .pth file to read, where the user named it.
    Returns:
        Tensors by name, the files they are in (the index among them), and warnings.
    Raises:
        InputError: no weights, a shard is missing or lies outside the folder, index and shards disagree, or several
            .pt files and none is named.
    """
    path = named or next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None) or _training_file(folder)
    if path.name.endswith(".index.json"):
        return _read_shards(folder, path.name)
    tensors, warnings = _read_one(path)
    return {tensor.name: tensor for tensor in tensors}, [path], warnings


def _training_file(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(found) > 1:
        named = f"{found[0].name} and {found[1].name}" + (f" and {len(found) - 2} more" if len(found) > 2 else "")
        raise InputError(str(folder), f"holds {named}", f"name the file: {found[0]}")
    if not found:
        raise InputError(
            str(folder),
            f"has no {', '.join(WEIGHT_FILES)} or .pt file",
            "put the weights beside config.json, under one of these names",
        )
    return found[0]


def _read_shards(folder: Path, index_name: str) -> tuple[dict[str, StoredTensor], list[Path], list[str]]:
    weight_map = parse_object(index_name, read_file(folder / index_name)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(index_name, "weight_map does not map tensor names to file names", DAMAGED)
    tensors: dict[str, StoredTensor] = {}
    shards = [_shard_path(folder, index_name, shard) for shard in sorted(set(weight_map.values()))]
    warnings: list[str] = []
    for path in shards:
        described, more_warnings = _read_one(path)
        warnings += more_warnings
        for tensor in described:
            if tensor.name in tensors:
                raise InputError(
                    f"{path.name}: {tensor.name}", f"is also in {tensors[tensor.name].where.split(':')[0]}", DAMAGED
                )
            tensors[tensor.name] = tensor
        held = {tensor.name for tensor in described}
        lacking = [name for name, shard in weight_map.items() if shard == path.name and name not in held]
        if lacking:
            raise InputError(path.name, f"lacks {lacking[0]}, which {index_name} says it holds", DAMAGED)
    return tensors, [folder / index_name, *shards], warnings


def _shard_path(folder: Path, index_name: str, shard: str) -> Path:
    """A plain name in the folder. The file itself may be a symlink: Hub caches are made of them.

    So it is the index that must not lead out of the folder, by a path; where the folder's owner links is theirs.
    """
    if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
        raise InputError(index_name, f"names {shard!r}, which is not a file of this folder", DAMAGED)
    if Path(shard).suffix not in (".safetensors", ".bin"):
        raise InputError(index_name, f"names {shard!r}, which is neither .safetensors nor .bin", DAMAGED)
    if not (folder / shard).is_file():
        raise InputError(shard, f"missing, and {index_name} needs it", "download the shard")
    return folder / shard


def _read_one(path: Path) -> tuple[list[StoredTensor], list[str]]:
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path), []
        return read_training_file(path) if path.suffix in SUFFIXES else read_torch(path)
    except OSError as error:
        raise InputError(path.name, f"cannot be read ({error.strerror})", "check its permissions") from None
