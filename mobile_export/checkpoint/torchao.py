"""torchao's converted matrices in a safetensors file: the codes and scales quantization-aware training ends in.

torchao takes a tensor apart into `_weight_qdata`, `_weight_scale` and `_weight_zero_point`, and says in the file's metadata
under the weight's own name what they were. A model that is prepared for training and not converted saves plain weights.
Source: torchao 0.18, `prototype/safetensors/safetensors_support.py` (what transformers' `save_pretrained` writes) and
`quantization/quantize_/workflows/intx/intx_unpacked_to_int8_tensor.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobile_export.checkpoint.contents import StoredTensor, TrainedCodes
from mobile_export.checkpoint.safetensors_file import read_metadata
from mobile_export.errors import InputError

if TYPE_CHECKING:
    import torch

KIND = "IntxUnpackedToInt8Tensor"
PARTS = ("qdata", "scale", "zero_point")
ORIGINAL = "export the float checkpoint, or convert it with Int8DynamicActivationIntxWeightConfig"
NOTE = "trained with rounded weights and float activations; an artifact's activations are int8"


def with_torchao_codes(tensors: Mapping[str, StoredTensor], files: Iterable[Path]) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors, the parts of each converted matrix made one, and a warning where the training is not the artifact's.

    Raises:
        InputError: a matrix of another kind than torchao's unpacked integers, or one whose codes no artifact holds.
    """
    metadata = {name: text for path in files if path.suffix == ".safetensors" for name, text in read_metadata(path).items()}
    held = dict(tensors)
    notes: list[str] = []
    for name, text in metadata.items():
        module, _, attribute = name.rpartition(".")
        parts = {part: f"{module}._{attribute}_{part}" for part in PARTS}
        if name in tensors or parts["qdata"] not in tensors:
            continue
        described = _described(name, text)
        if lacking := [part for part in parts.values() if part not in tensors]:
            raise InputError(name, f"{lacking[0]} is missing", "is the download complete?")
        codes, scale, zero_point = (held.pop(part) for part in parts.values())
        held[name] = _coded(name, described, codes, scale, zero_point)
        if described.get("activation_quantization") != "int8_asym_per_token" and not notes:
            notes.append(f"{codes.where}: {NOTE}")
    return held, notes


def _described(name: str, text: str) -> dict[str, Any]:
    """What the metadata says of a matrix."""
    try:
        found = json.loads(text)
        kind, data = found["_type"], found["_data"]
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
        raise InputError(name, f"the file's metadata does not describe it: {error!r}", "save it with torchao again") from None
    if kind != KIND or not isinstance(data, dict):
        raise InputError(name, f"is stored as torchao's {kind}, which is not supported", ORIGINAL)
    return data


def _coded(
    name: str, described: Mapping[str, Any], codes: StoredTensor, scale: StoredTensor, zero_point: StoredTensor
) -> StoredTensor:
    import torch

    block, dtype = described.get("block_size"), described.get("target_dtype")
    width = re.fullmatch(r"int([1-8])", str(dtype.get("_data") if isinstance(dtype, dict) else dtype))
    shape = codes.shape
    rows = isinstance(block, list) and len(block) == len(shape) == 2 and block[0] == 1 and type(block[1]) is int
    size = block[1] if rows and block else 0
    if size < 1 or shape[1] % size or scale.shape != (shape[0], shape[1] // size) or not width:
        what = f"codes {list(shape)} of {width[0] if width else dtype} with scales {list(scale.shape)} in blocks of {block}"
        raise InputError(codes.where, f"{what}: not one scale per output channel, or per group of its inputs", ORIGINAL)
    bits: Literal[4, 8] = 4 if int(width[1]) <= 4 else 8
    group = size if size != shape[1] else None
    if bits == 8 and group is not None:
        what = f"{width[0]} codes in groups of {group}: artifacts hold 8 bits per channel only"
        raise InputError(codes.where, what, "train with 4 bits in groups, or 8 bits per channel (PerAxis(0))")
    if group is not None and group % 32:
        raise InputError(codes.where, f"groups of {group}: artifacts hold multiples of 32", "train with groups of 32")

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        if zero_point.read().count_nonzero():
            raise InputError(zero_point.where, "zero points that are not 0", "train with MappingType.SYMMETRIC")
        found, steps = codes.read(), scale.read().float()
        if not (torch.isfinite(steps).all() and (steps > 0).all()):
            raise InputError(scale.where, "a scale is not finite or not above 0", "the checkpoint is damaged: use another one")
        low, high = (-8, 7) if bits == 4 else (-128, 127)
        if found.dtype != torch.int8 or found.amin() < low or found.amax() > high:
            raise InputError(codes.where, f"codes are not {width[0]}", "the checkpoint is damaged: use another one")
        return found, steps

    def values() -> torch.Tensor:
        found, steps = read()
        return (found.view(*steps.shape, -1) * steps[..., None]).view(shape)

    stored = (codes, scale, zero_point)
    return StoredTensor(
        name,
        shape,
        codes.dtype,
        codes.where,
        tuple(part.storage for part in stored),
        read=values,
        raw=lambda: torch.cat([part.raw() for part in stored]),
        trained=TrainedCodes(bits, group, read),
    )
