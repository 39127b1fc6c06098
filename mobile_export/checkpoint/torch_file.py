"""One .bin or .pt file as `torch.save` wrote it: a pickle, so it is opened with `weights_only=True` and nothing else.

A pickle can name any function to be called. `weights_only=True` runs none but torch's own rebuilding of tensors;
there is no option to trust a file more than that.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_export.checkpoint.contents import StoredTensor
from mobile_export.checkpoint.dtypes import dtype_name
from mobile_export.errors import InputError
from mobile_export.units import megabytes

if TYPE_CHECKING:
    import torch

ZIP_MAGIC = b"PK\x03\x04"
CONVERT = "convert it to safetensors on a machine where you trust it, or ask its author for safetensors"


def read_torch(path: Path) -> tuple[list[StoredTensor], list[str]]:
    """Describe every tensor of the file; two names over one storage share their `storage`.

    Returns:
        The tensors in file order, and warnings.
    Raises:
        InputError: the pickle asks to run code, is damaged, or holds something other than named tensors.
    """
    import torch

    with path.open("rb") as file:
        mapped = file.read(4) == ZIP_MAGIC
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols; what matters of it comes as an error
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a pickle is a program: a damaged one raises whatever it ran into
        raise InputError(path.name, _refusal(error), CONVERT) from None
    if not isinstance(contents, dict):
        raise InputError(path.name, f"holds a {type(contents).__name__}, not named tensors", "save model.state_dict()")
    tensors = [_describe(path, name, value) for name, value in contents.items()]
    if mapped:
        return tensors, []
    size = megabytes(path.stat().st_size)
    return tensors, [f"{path.name}: old pickle form, so all {size} of it are in memory; safetensors would be mapped"]


def _refusal(error: Exception) -> str:
    """One line out of torch's paragraph: which code the pickle asks for, where that is the reason."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"refused: the pickle asks for {asked[1]}, and a checkpoint is never allowed to run code"
    detail = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
    reason = detail[1] if detail else (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"refused: not a readable pickle of tensors ({reason[:120]})"


def _describe(path: Path, name: object, value: Any) -> StoredTensor:
    import torch

    where = f"{path.name}: {name}"
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise InputError(where, f"is a {type(value).__name__}, not a named tensor", "save model.state_dict() alone")
    dtype = dtype_name(value.dtype)
    if dtype is None or value.layout is not torch.strided or value.device.type != "cpu":
        kind = f"{str(value.dtype).removeprefix('torch.')}, {str(value.layout).removeprefix('torch.')}"
        raise InputError(where, f"is stored as {kind}, which is not supported", "convert the checkpoint to BF16, F16 or F32")
    tensor = value.detach()
    return StoredTensor(
        name,
        tuple(tensor.shape),
        dtype,
        where,
        _storage(path, name, tensor),
        read=lambda: tensor,
        raw=lambda: tensor.reshape(-1).view(torch.uint8),
    )


def _storage(path: Path, name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    if tensor.numel() == 0:  # all empty storages have address 0
        return (str(path), name)
    address = tensor.untyped_storage().data_ptr()
    return (str(path), address, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), str(tensor.dtype))
