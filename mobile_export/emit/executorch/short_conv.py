"""LFM2's mixer as the .pte runs it: two delegates a block, the last columns of a text between them.

A slice of a tensor of dynamic length would stay outside a delegate. So the columns of the positions a convolution sees
are cut outside, and come to the second piece as so many tensors; there each meets its column of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mobile_export.families.spec import BlockSpec, DecoderSpec
from mobile_export.model.decoder import ConvBlock, FeedForward
from mobile_export.model.norms import stream_norm


class ConvInput(nn.Module):
    """ShortConv up to its three parts, side by side: residual stream [1, T, hidden] -> [1, T, 3 * hidden].

    inner: the graph's "in", a word that the code torch.export writes cannot have for a name.
    """

    def __init__(self, spec: DecoderSpec, kind: BlockSpec) -> None:
        super().__init__()
        self.norm: nn.Module = stream_norm(spec)
        self.inner: nn.Module = nn.Linear(spec.hidden_size, 3 * spec.hidden_size, bias=spec.conv_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.inner(self.norm(x))
        return joined


class Taps(nn.Module):
    """The kernel's columns, the last for the position itself, and its bias."""

    bias: nn.Parameter | None

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.taps = nn.ParameterList(torch.zeros(spec.hidden_size) for _ in range(spec.conv_kernel))
        self.register_parameter("bias", nn.Parameter(torch.zeros(spec.hidden_size)) if spec.conv_bias else None)

    def forward(self, columns: Iterable[torch.Tensor]) -> torch.Tensor:
        first, *others = (column * tap for column, tap in zip(columns, self.taps, strict=True))
        for product in others:
            first = first + product
        return first if self.bias is None else first + self.bias


class ConvOutput(nn.Module):
    """The rest of a conv block: residual stream, gate, and the columns at each of the kernel's places, all [1, T, hidden]."""

    def __init__(self, spec: DecoderSpec, kind: BlockSpec) -> None:
        super().__init__()
        self.conv, self.ffn = Taps(spec), FeedForward(spec, kind)

    def forward(self, x: torch.Tensor, gate: torch.Tensor, *columns: torch.Tensor) -> torch.Tensor:
        return self.ffn(x, gate * self.conv(columns))


class PteConvBlock(ConvBlock):
    """A conv block of a lowered ConvInput and a lowered ConvOutput."""

    def __init__(self, before: nn.Module, after: nn.Module, kernel: int) -> None:
        nn.Module.__init__(self)
        self.before, self.after, self.kernel = before, after, kernel

    def forward(self, x: torch.Tensor, slot: int, start: int, remember: nn.Module) -> torch.Tensor:
        inner, gate, value = self.before(x).chunk(3, dim=-1)
        columns = remember(slot, inner * value, start)
        return self.after(x, gate, *(columns.narrow(1, place, x.shape[1]) for place in range(self.kernel)))


class PteColumns(nn.Module):
    """The last columns of every conv execution, [1, conv_kernel - 1, hidden]; a text begins at position 0 with none.

    Only the last are kept: a text can be taken up where it ended or begun anew, not at a position before.
    """

    begun: torch.Tensor

    def __init__(self, spec: DecoderSpec, slots: Iterable[int], context: int) -> None:
        super().__init__()
        self.reach = spec.conv_kernel - 1
        for slot in slots:
            self.register_buffer(f"columns_{slot}", torch.zeros(1, self.reach, spec.hidden_size))
        self.register_buffer("begun", (torch.arange(context) > 0).float(), persistent=False)

    def forward(self, slot: int, columns: torch.Tensor, start: int) -> torch.Tensor:
        """The columns of positions from `start` on, [1, T, hidden], after those before them."""
        kept = self.get_buffer(f"columns_{slot}")
        both = torch.cat((kept * self.begun.narrow(0, start, 1), columns), dim=1)
        kept.copy_(both.narrow(1, columns.shape[1], self.reach))
        return both
