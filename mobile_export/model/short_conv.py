"""LFM2's mixer: a gated causal convolution over a few positions, each channel by itself. Source: Lfm2ShortConv."""

from __future__ import annotations

import torch
from torch import nn

from mobile_export.families.spec import DecoderSpec
from mobile_export.model.norms import stream_norm


class ShortConv(nn.Module):
    """What comes before and after the columns of a slot: (B, C, x) = in(norm(stream)); C * conv(B * x).

    Its output projection is the block's ffn.o, as an attention's is. kernel: [hidden, 1, conv_kernel], the last column
    for the position itself.
    """

    bias: nn.Parameter | None

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        hidden = spec.hidden_size
        self.norm: nn.Module = stream_norm(spec)
        self.add_module("in", nn.Linear(hidden, 3 * hidden, bias=spec.conv_bias))  # a name of the graph, a word of Python
        self.kernel = nn.Parameter(torch.zeros(hidden, 1, spec.conv_kernel))
        self.register_parameter("bias", nn.Parameter(torch.zeros(hidden)) if spec.conv_bias else None)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream [1, T, hidden] -> columns to convolve and the gate on the result, each [1, T, hidden]."""
        before, after, value = self.get_submodule("in")(self.norm(x)).chunk(3, dim=-1)
        return before * value, after

    def convolve(self, columns: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Columns [1, conv_kernel - 1 + T, hidden] and gate [1, T, hidden] -> [1, T, hidden]."""
        mixed = nn.functional.conv1d(columns.transpose(1, 2), self.kernel, self.bias, groups=self.kernel.shape[0])
        return gate * mixed.transpose(1, 2)


class PlainColumns(nn.Module):
    """The columns of every slot, kept whole, so that a sequence can be taken up again at any position."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.reach = spec.conv_kernel - 1
        self.kept: dict[int, torch.Tensor] = {}

    def forward(self, slot: int, columns: torch.Tensor, start: int) -> torch.Tensor:
        """Keep the columns of positions from `start` on, [1, T, hidden]; give them with those before, zeros before 0."""
        zeros = columns.new_zeros(1, self.reach, columns.shape[2])
        past = self.kept[slot][:, : self.reach + start] if start else zeros
        self.kept[slot] = torch.cat((past, columns), dim=1)
        return self.kept[slot][:, start:]
