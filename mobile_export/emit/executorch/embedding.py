"""The token table as the .pte gathers from it: in the head's own bytes, so that a tied table can be stored once."""

from __future__ import annotations

import torch
from torch import nn

from mobile_export.emit.executorch.pieces import packed_codes
from mobile_export.quantize.clip_search import QuantizedWeight


class Gather8Bit(nn.Module):
    """Rows of an 8-bit per-channel table, by `quantized_decomposed::embedding_byte`."""

    def __init__(self, table: QuantizedWeight) -> None:
        super().__init__()
        self.register_buffer("codes", table.codes)
        self.register_buffer("scales", table.scales)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized_decomposed.embedding_byte(self.codes, self.scales, None, -128, 127, tokens)


class Gather4Bit(nn.Module):
    """Rows of a 4-bit table, by `quantized_decomposed::embedding_4bit`.

    The operator takes the even channel from the high nibble, XNNPACK's linears from the low one. The bytes are the
    head's, so the operator gives every pair of channels swapped, and the pairs are swapped back here.
    """

    def __init__(self, table: QuantizedWeight) -> None:
        super().__init__()
        rows, columns = table.codes.shape
        packed = torch.frombuffer(bytearray(packed_codes(table)), dtype=torch.uint8)
        self.register_buffer("codes", packed.view(rows, columns // 2))
        half = table.scales.half()
        # One scale a channel is float32 in the head, too, and may be its bytes. bfloat16 reaches below float16's values.
        halved = table.precision.group_size is not None and bool((half.float() == table.scales).all())
        self.register_buffer("scales", half if halved else table.scales)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        swapped = torch.ops.quantized_decomposed.embedding_4bit.dtype(
            self.codes, self.scales, None, -8, 7, tokens, dtype=torch.float32
        )
        pairs = swapped.view(*swapped.shape[:-1], -1, 2)
        return torch.cat((pairs[..., 1:], pairs[..., :1]), dim=-1).view(swapped.shape)


class GatherFloat(nn.Module):
    """Rows of a float32 table."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(tokens, self.table)


def gather(table: QuantizedWeight | torch.Tensor) -> nn.Module:
    """The module that gathers rows of a table stored at its precision: tokens int64 [1, T] -> float32 [1, T, hidden]."""
    if isinstance(table, torch.Tensor):
        return GatherFloat(table)
    return Gather4Bit(table) if table.precision.bits == 4 else Gather8Bit(table)
