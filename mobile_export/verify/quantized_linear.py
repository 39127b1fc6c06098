"""A Linear over int8 activations and quantized weights in plain PyTorch: a runtime kernel's arithmetic, spelled out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mobile_export.quantize.clip_search import QuantizedWeight

Activations = Callable[[torch.Tensor], torch.Tensor]  # x [..., K] through int8 and back, as one runtime does it


class DynamicInt8Linear(nn.Module):
    """y = dequantize(quantize(x)) @ (codes * scales).T + bias.

    Sums of int8 codes are exact in a kernel; here they are float32 over float32 weights, so the two agree to float32
    rounding, except where that rounding moves an activation of a later layer to its neighbouring code.
    Holds a byte a weight; the float32 matrix exists while it is multiplied with.
    """

    bias: torch.Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None, activations: Activations) -> None:
        super().__init__()
        self.weight, self.activations = weight, activations
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.activations(x), self.weight.dequantized(), self.bias)


class QuantizedEmbedding(nn.Module):
    """Rows of codes * scales. tokens int64 [1, T] -> float32 [1, T, hidden]."""

    def __init__(self, table: QuantizedWeight) -> None:
        super().__init__()
        self.table = table

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = QuantizedWeight(self.table.codes[tokens[0]], self.table.scales[tokens[0]], self.table.precision)
        return rows.dequantized()[None]


def quantize_dequantize_blocks(x: torch.Tensor, block: int) -> torch.Tensor:
    """Each run of `block` values of the last axis through int8: scale from its largest magnitude, no zero point.

    Source: onnxruntime `core/mlas/lib/sqnbitgemm_kernel_avx512.cpp` and its siblings, `QuantizeARow_CompInt8`.
    """
    blocks = x.unflatten(-1, (-1, block))
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest == 0, 0.0, 127 / largest)
    return (torch.round(blocks * inverse) * (largest / 127)).flatten(-2)
