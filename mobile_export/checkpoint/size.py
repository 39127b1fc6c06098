"""How many bytes of weights a checkpoint stores: what a config that asks for more is checked against."""

from __future__ import annotations

import math

from mobile_export.checkpoint.contents import Checkpoint, StoredTensor
from mobile_export.checkpoint.dtypes import ITEM_BYTES


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of tensor data in the files; names that share a storage count once."""
    once = {tensor.storage: tensor for tensor in checkpoint.tensors.values()}
    return sum(tensor_bytes(tensor) for tensor in once.values())


def tensor_bytes(tensor: StoredTensor) -> int:
    """Bytes of one tensor as stored, e.g. 20 for 32 values of Q4_1."""
    values = math.prod(tensor.shape)
    if tensor.dtype in ITEM_BYTES:
        return values * ITEM_BYTES[tensor.dtype]
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.dtype]]
    return values // block_values * block_bytes
