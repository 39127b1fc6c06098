"""Names of stored dtypes, as safetensors spells them; GGUF's unquantized types have the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# name -> name of the torch dtype; torch itself is imported only when a tensor is
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
ITEM_BYTES = {name: 1 if name == "BOOL" else int(name.lstrip("BFIU")) // 8 for name in TORCH_NAMES}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name in `TORCH_NAMES`."""
    import torch

    dtype = getattr(torch, TORCH_NAMES[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str | None:
    """The stored name of a torch dtype, or None where we do not support it (float8, complex, quantized)."""
    return {torch_name: name for name, torch_name in TORCH_NAMES.items()}.get(str(dtype).removeprefix("torch."))
