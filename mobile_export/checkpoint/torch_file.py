"""One .bin or .pt file as `torch.save` wrote it: a pickle, so it is opened with `weights_only=True` and nothing else.

A pickle can name any function to be called. `weights_only=True` runs none but torch's own rebuilding of tensors;
there is no option to trust a file more than that.
"""

from __future__ import annotations

import mmap
import re
import warnings
import zipfile
from io import BufferedReader, FileIO
from os import fstat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_export.checkpoint.contents import StoredTensor
from mobile_export.checkpoint.dtypes import dtype_name
from mobile_export.errors import InputError
from mobile_export.units import megabytes

if TYPE_CHECKING:
    import torch

ZIP_MAGIC = b"PK\x03\x04"
BYTEARRAY = b"bytearray\n"  # as the one opcode that weights_only knows for a global spells it
CONVERT = "convert it to safetensors on a machine where you trust it, or ask its author for safetensors"


def read_torch(path: Path) -> tuple[list[StoredTensor], list[str]]:
    """Describe every tensor of the file; two names over one storage share their `storage`.

    Returns:
        The tensors in file order, and warnings.
    Raises:
        InputError: the pickle asks to run code, is damaged, or holds something other than named tensors.
    """
    contents, notes = load_dict(path)
    return [describe(path, name, value) for name, value in contents.items()], notes


def load_dict(path: Path) -> tuple[dict[Any, Any], list[str]]:
    """The dict a file holds, its tensors mapped where the form allows it, and warnings.

    Raises:
        InputError: the pickle asks to run code, is damaged, or holds no dict.
    """
    import torch

    with path.open("rb") as file:
        mapped = file.read(4) == ZIP_MAGIC
    try:
        _refuse_inflated(path, mapped)
        with warnings.catch_warnings(action="ignore"), _Bounded(FileIO(path)) as file:
            # The warnings are on pickle protocols; what matters of them comes as an error.
            contents = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a pickle is a program: a damaged one raises whatever it ran into
        raise InputError(path.name, _refusal(error), CONVERT) from None
    if not isinstance(contents, dict):
        raise InputError(path.name, f"holds a {type(contents).__name__}, not named tensors", "save model.state_dict()")
    if mapped:
        return contents, []
    size = megabytes(path.stat().st_size)
    return contents, [f"{path.name}: old pickle form, so all {size} of it are in memory; safetensors would be mapped"]


class _Bounded(BufferedReader):
    """A file of which no more is asked for than there is: a pickle's lengths are its author's, up to 4 GiB each."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def _refuse_inflated(path: Path, mapped: bool) -> None:
    """What makes much memory of a small file: compression, which torch.save never uses, and `bytearray(n)`.

    weights_only lets a pickle call `bytearray`, for which no state dict has a use.
    """
    if mapped:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(path.name, "refused: a compressed archive, which torch.save never writes", CONVERT)
            found = any(BYTEARRAY in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = content.find(BYTEARRAY) >= 0
    if found:
        raise InputError(path.name, "refused: the pickle asks for bytearray, which no state dict holds", CONVERT)


def _refusal(error: Exception) -> str:
    """One line out of torch's paragraph: which code the pickle asks for, where that is the reason."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"refused: the pickle asks for {asked[1]}, and a checkpoint is never allowed to run code"
    detail = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
    reason = detail[1] if detail else (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"refused: not a readable pickle of tensors ({reason[:120]})"


def describe(path: Path, name: object, value: Any, called: str | None = None) -> StoredTensor:
    """One entry of a state dict as a tensor, under the name `called` where that is not the file's own.

    Raises:
        InputError: not a named tensor, of a dtype or layout that is not supported, or larger than what is stored of it.
    """
    import torch

    where = f"{path.name}: {name}"
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise InputError(where, f"is a {type(value).__name__}, not a named tensor", "save model.state_dict() alone")
    dtype = dtype_name(value.dtype)
    plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested and not value.is_neg()
    if dtype is None or not plain:
        form = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        kind = f"{str(value.dtype).removeprefix('torch.')}, {form}"
        raise InputError(where, f"is stored as {kind}, which is not supported", "convert the checkpoint to BF16, F16 or F32")
    if type(value) not in (torch.Tensor, torch.nn.Parameter):  # torchao's, where a process has imported torchao
        what = f"is a {type(value).__name__}, of which only its own library knows the layout"
        raise InputError(where, what, "save it as safetensors, with save_pretrained")
    tensor = value.detach()
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():  # a stride of 0 makes terabytes of a byte
        raise InputError(where, f"shape {tuple(tensor.shape)} repeats stored values", "save it with .contiguous()")
    return StoredTensor(
        called or name,
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
