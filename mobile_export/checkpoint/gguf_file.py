"""A .gguf file as a Checkpoint: Hugging Face names, shapes and row order, whatever llama.cpp changed.

Quantized tensors are dequantized one at a time, when they are read.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_export.checkpoint.contents import Checkpoint, StoredTensor
from mobile_export.checkpoint.dtypes import TORCH_NAMES, torch_dtype
from mobile_export.checkpoint.gguf_architectures import GgufArchitecture
from mobile_export.checkpoint.gguf_config import CONVERT, find_architecture, translate_config
from mobile_export.checkpoint.gguf_header import GgufHeader, GgufTensor, read_header
from mobile_export.checkpoint.gguf_tokenizer import tokenizer_from_metadata
from mobile_export.checkpoint.mapped import map_bytes, map_values
from mobile_export.errors import InputError

if TYPE_CHECKING:
    import torch

ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: Path, source: str) -> Checkpoint:
    """Open and validate one .gguf file.

    Raises:
        InputError: the file is damaged, one part of several, or of an architecture we do not read.
    """
    _refuse_split(path, {})
    try:
        header = read_header(path)
    except OSError as error:
        raise InputError(path.name, f"cannot be read ({error.strerror})", "check its permissions") from None
    _refuse_split(path, header.metadata)
    architecture = find_architecture(path.name, header.metadata)
    factors = next((_rope_factors(path, tensor) for tensor in header.tensors if tensor.name == ROPE_FACTORS), None)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    config = translate_config(path.name, header.metadata, architecture, shapes, factors)
    licence = header.metadata.get("general.license")
    tokenizer, warnings = tokenizer_from_metadata(path.name, header.metadata)
    return Checkpoint(
        source=source,
        config=config,
        tensors=_tensors(path, header, architecture, config),
        tokenizer=tokenizer,
        bos_id=config["bos_token_id"],
        eos_ids=tokenizer.eos_ids if tokenizer else tuple(i for i in (config["eos_token_id"],) if i is not None),
        licence=licence if isinstance(licence, str) else None,
        files=(path,),
        warnings=tuple(warnings),
    )


def _refuse_split(path: Path, metadata: Any) -> None:
    if metadata.get("split.count", 1) not in (0, 1) or re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise InputError(
            path.name, "is one part of a split GGUF", "merge the parts first: llama-gguf-split --merge FIRST_PART OUT"
        )


def _rope_factors(path: Path, tensor: GgufTensor) -> list[float]:
    if tensor.type != "F32":
        raise InputError(f"{path.name}: {tensor.name}", f"is {tensor.type}, expected F32", CONVERT)
    factors: list[float] = map_values(path, tensor.begin, tensor.length, torch_dtype("F32"), (-1,)).tolist()
    if not all(0 < factor < float("inf") for factor in factors):
        raise InputError(f"{path.name}: {tensor.name}", "holds a factor that is not a positive number", CONVERT)
    return factors


def _tensors(path: Path, header: GgufHeader, architecture: GgufArchitecture, config: dict[str, Any]) -> dict[str, StoredTensor]:
    tensors = {}
    for tensor in header.tensors:
        stem, _, suffix = tensor.name.rpartition(".")
        number = re.fullmatch(r"blk\.(\d+)\..+", stem)
        pattern = re.sub(r"^blk\.\d+\.", "blk.{}.", stem)
        if pattern in architecture.skipped or tensor.name == ROPE_FACTORS:
            continue
        where = f"{path.name}: {tensor.name}"
        if pattern not in architecture.tensors or suffix not in ("weight", "bias"):
            raise InputError(where, "is not a tensor this architecture has", CONVERT)
        name = architecture.tensors[pattern].format(number[1] if number else "") + f".{suffix}"
        heads_key = architecture.interleaved_heads.get(pattern)
        heads = config[heads_key] if heads_key else None
        if heads is not None and tensor.shape[0] % (2 * heads):
            raise InputError(where, f"{tensor.shape[0]} rows do not divide into pairs for {heads} heads", CONVERT)
        tensors[name] = StoredTensor(
            name,
            tensor.shape,
            tensor.type,
            where,
            storage=(str(path), tensor.begin, tensor.length, tensor.shape, tensor.type),
            read=partial(_read, path, tensor, where, heads),
            raw=partial(map_bytes, path, tensor.begin, tensor.length),
        )
    return tensors


def _read(path: Path, tensor: GgufTensor, where: str, interleaved_heads: int | None) -> torch.Tensor:
    if tensor.type in TORCH_NAMES:
        values = map_values(path, tensor.begin, tensor.length, torch_dtype(tensor.type), tensor.shape)
    else:
        values = _dequantize(map_bytes(path, tensor.begin, tensor.length), tensor, where)
    return values if interleaved_heads is None else halves_from_pairs(values, interleaved_heads)


def _dequantize(raw: torch.Tensor, tensor: GgufTensor, where: str) -> torch.Tensor:
    """float32, `tensor.shape`; the arithmetic is gguf's, in float32."""
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, dequantize

    try:
        with np.errstate(all="ignore"):  # a damaged scale gives NaN, which read_float32 reports with its place
            values = dequantize(raw.numpy().reshape(*tensor.shape[:-1], -1), GGMLQuantizationType[tensor.type])
    except NotImplementedError:
        raise InputError(where, f"type {tensor.type} cannot be dequantized", "use an F16 or Q8_0 file") from None
    return torch.from_numpy(values)


def halves_from_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's reordering of query and key rows.

    Rotary embedding turns pairs of rows of a head. Hugging Face pairs row i with row i + head_dim / 2; llama.cpp
    pairs 2i with 2i + 1, and its converter moves the rows so that the sums come out the same:

    >>> import torch
    >>> halves_from_pairs(torch.tensor([0, 2, 1, 3]), heads=1)
    tensor([0, 1, 2, 3])

    Args:
        rows: (heads * head_dim, ...), in pairs.
    Returns:
        The same rows in halves; a copy.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
