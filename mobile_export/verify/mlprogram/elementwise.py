"""Operators that work on one element at a time, as coremltools documents them for iOS 15 to 18, with their defaults.

Source: coremltools/converters/mil/mil/ops/defs/iOS15 to iOS18, elementwise_unary.py, elementwise_binary.py, activation.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mobile_export.verify.mlprogram.bounds import bounded

CASTS = {"fp16": "float16", "fp32": "float32"} | {name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "bool")}
TO = {"float16": torch.float32, "float32": torch.float32, "int8": torch.int8, "uint8": torch.uint8} | {
    "int16": torch.int16, "uint16": torch.int32, "int32": torch.int32, "bool": torch.bool
}  # fmt: skip


def unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An operator of one input."""

    def run(x: Tensor) -> Tensor:
        return function(x)

    return run


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """An operator of two inputs that are broadcast together."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape:
            bounded(*torch.broadcast_shapes(x.shape, y.shape))
        return function(x, y)

    return run


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y, rounded towards negative infinity."""
    return torch.div(x, y, rounding_mode="floor")


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; of integers an integer, where it is one.

    Raises:
        ValueError: a fraction of integers: how it is rounded is not documented.
    """
    if x.dtype.is_floating_point:
        return x / y
    quotient = torch.div(x, y, rounding_mode="floor")
    if not torch.equal(quotient * y, x.expand(quotient.shape)):
        raise ValueError("dividing integers leaves a fraction")
    return quotient


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return 1 / (x + epsilon)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Alpha where x is less, beta where it is more."""
    return x.clamp(alpha, beta)


def threshold(x: Tensor, alpha: float) -> Tensor:
    """Alpha where x is less."""
    return x.clamp(min=alpha)


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x, or alpha * x where x is negative."""
    return torch.where(x >= 0, x, alpha * x)


def relu6(x: Tensor) -> Tensor:
    """x between 0 and 6."""
    return x.clamp(0, 6)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x * Phi(x), exactly or approximated by tanh or by a sigmoid.

    Raises:
        ValueError: no such mode.
    """
    if mode == "EXACT":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"no mode {mode[:40]}")


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return torch.log1p(torch.exp(-x.abs())) + functional.relu(x)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where cond is true, else b; the three are broadcast together."""
    bounded(*torch.broadcast_shapes(cond.shape, a.shape, b.shape))
    return torch.where(cond, a, b)


def cast(x: Tensor, dtype: str) -> Tensor:
    """x as another dtype: a float loses its fraction, an integer its highest bits.

    Raises:
        ValueError: no such dtype.
    """
    if dtype not in CASTS:
        raise ValueError(f"no dtype {dtype[:40]}")
    if CASTS[dtype] == "uint16":
        return x.to(torch.int32) & 0xFFFF
    return x.to(TO[CASTS[dtype]])
