"""The weights of a piece: as torchao's tensors for its lowering, and as the constants XNNPACK stores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torchao.quantization.quantize_.workflows import IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8TensorActivationQuantization as ActivationQuantization,
)

from mobile_export.emit.packing import four_bit_pairs
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.recipe import Precision

TORCHAO_DTYPE = {4: "int4", 8: "int8"}  # by name: torch's stubs lack int4

SCALE = "scale_"  # what XNNPACK's serializer puts before a scale's digest

Weight = QuantizedWeight | torch.Tensor


class FourBitChannels(IntxUnpackedToInt8Tensor):
    """torchao's tensor of 4-bit codes with one scale per output channel, for XNNPACK's type that has float32 scales.

    torchao's own operator arrives at XNNPACK as one group as wide as the matrix, whose scales are bfloat16. Scales and zero
    points are one-dimensional here, as the other operator takes them.
    """

    def __init__(
        self,
        qdata: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        target_dtype: torch.dtype,
        block_size: tuple[int, int],
        dtype: torch.dtype,
        activation_quantization: ActivationQuantization,
    ) -> None:
        super(IntxUnpackedToInt8Tensor, self).__init__()  # its own checks for two dimensions
        self.qdata, self.scale, self.zero_point = qdata, scale, zero_point
        self.target_dtype, self.block_size, self.activation_quantization = target_dtype, block_size, activation_quantization

    def dequantize(self) -> torch.Tensor:
        """float32 values, by the operator XNNPACK takes for a channel's scale."""
        return torch.ops.quantized_decomposed.dequantize_per_channel(
            self.qdata, self.scale, self.zero_point, 0, -8, 7, torch.int8, out_dtype=torch.float32
        )


def torchao_weight(weight: QuantizedWeight) -> IntxUnpackedToInt8Tensor:
    """Our codes and scales in torchao's representation, with int8 activations chosen per token at run time."""
    columns = weight.codes.shape[1]
    channels = weight.precision.bits == 4 and weight.precision.group_size is None
    kind, scales = (FourBitChannels, weight.scales[:, 0]) if channels else (IntxUnpackedToInt8Tensor, weight.scales)
    return kind(
        qdata=weight.codes,
        scale=scales,
        zero_point=torch.zeros(scales.shape, dtype=torch.int8),
        target_dtype=getattr(torch, TORCHAO_DTYPE[weight.precision.bits]),
        block_size=(1, columns // weight.scales.shape[1]),
        dtype=torch.float32,
        activation_quantization=ActivationQuantization.INT8_ASYM_PER_TOKEN,
    )


@dataclass(frozen=True)
class Constant:
    """Bytes a delegate payload refers to by name, the name holding their SHA-256."""

    key: str
    data: bytes

    @classmethod
    def named(cls, prefix: str, data: bytes) -> Constant:
        """Name bytes as XNNPACK's serializer does."""
        return cls(prefix + digest(data), data)


def constants_of(weight: Weight) -> tuple[Constant, ...]:
    """A weight as XNNPACK's serializer stores it: codes (even input in the low nibble), then scales; or float32 values.

    Source: executorch `backends/xnnpack/operators/node_visitor.py`, `convert_to_qc4w` and `get_serialized_buffer_index`.
    """
    if isinstance(weight, torch.Tensor):
        return (Constant.named("", as_bytes(weight)),)
    grouped = weight.precision.group_size is not None  # scales.py says what becomes of those that are not bfloat16
    scales = weight.scales.to(torch.bfloat16).view(torch.int16) if grouped else weight.scales
    return Constant.named("", packed_codes(weight)), Constant.named(SCALE, as_bytes(scales))


def packed_codes(weight: QuantizedWeight) -> bytes:
    """8-bit codes as they are; 4-bit codes plus 8, two to a byte, the even input in the low nibble."""
    if weight.precision.bits == 8:
        return as_bytes(weight.codes)
    return as_bytes(four_bit_pairs(weight.codes))


def random_weight(shape: torch.Size, precision: Precision, generator: torch.Generator) -> QuantizedWeight:
    """Codes and scales of a given shape, no two alike: what a template is lowered with."""
    half = 1 << (precision.bits - 1)
    codes = torch.randint(1 - half, half, shape, dtype=torch.int8, generator=generator)
    groups = shape[1] // (precision.group_size or shape[1])
    scales = (torch.rand(shape[0], groups, generator=generator) + 0.5).to(torch.bfloat16).float()
    return QuantizedWeight(codes, scales, precision)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal: what payloads are named by."""
    return hashlib.sha256(data).hexdigest()


def as_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's values, row-major."""
    return tensor.contiguous().numpy().tobytes()
