"""The forms a package has: what its functions are called with, and the decoder that is traced for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from mobile_export.emit.coreml.decoder import PositionedDecoder, StatefulDecoder, StockDecoder
from mobile_export.emit.coreml.toolchain import coremltools

MAIN, PREFILL, DECODE = "main", "prefill", "decode"
TOKENS, MASK, POSITION, COUNT, LOGITS = "inputIds", "causalMask", "position", "count", "logits"


@dataclass(frozen=True)
class CoreMlOptions:
    """What a package is built for.

    max_context: rows of the caches.
    layout: "stock" for swift-transformers, "functions" for calls of fixed shape, "delegate" for ExecuTorch.
    max_prompt: tokens in a call of `prefill`, or the most in a delegate's call.
    palettes: 4-bit codes as indices into sixteen values.
    """

    max_context: int
    layout: Literal["stock", "functions", "delegate"] = "stock"
    max_prompt: int = 64
    palettes: bool = False


@dataclass(frozen=True)
class Function:
    """One function of a package: the decoder that is traced, its arguments' types in coremltools' terms, a call to trace."""

    decoder: type[StatefulDecoder]
    inputs: Sequence[Any]
    example: tuple[torch.Tensor, ...]


def functions(options: CoreMlOptions) -> Mapping[str, Function]:
    """The functions of a layout by name."""
    if options.layout == "stock":
        return {MAIN: _stock(options.max_context)}
    length = min(options.max_prompt, options.max_context)
    if options.layout == "delegate":
        return {MAIN: _positioned({TOKENS: (1, _upto(length)), POSITION: (1,)})}
    return {
        PREFILL: _positioned({TOKENS: (1, length), POSITION: (1,), COUNT: (1,)}),
        DECODE: _positioned({TOKENS: (1, 1), POSITION: (1,)}),
    }


def _stock(context: int) -> Function:
    ct = coremltools()
    inputs = (
        ct.TensorType(TOKENS, (1, _upto(context)), dtype=np.int32),
        ct.TensorType(MASK, (1, 1, _upto(context), _upto(context)), dtype=np.float16),
    )
    return Function(StockDecoder, inputs, (torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 1, 1, min(3, context))))


def _positioned(shapes: Mapping[str, tuple[Any, ...]]) -> Function:
    ct = coremltools()
    inputs = tuple(ct.TensorType(name, shape, dtype=np.int32) for name, shape in shapes.items())
    # From position 0, since a chunk may be as long as the context; two tokens where their number is open.
    sizes = {name: [size if isinstance(size, int) else 2 for size in shape] for name, shape in shapes.items()}
    example = tuple(torch.full(size, int(name == COUNT), dtype=torch.int32) for name, size in sizes.items())
    return Function(PositionedDecoder, inputs, example)


def _upto(largest: int) -> Any:
    """A dimension of 1 to `largest`; a new one each time, since two that share one must be equal at run time."""
    return coremltools().RangeDim(lower_bound=1, upper_bound=largest, default=1)
