"""RWKV-4 as the .pte runs it: four delegates a block, and between them the recurrence, a scan over the tokens of a call.

A slice of a tensor of dynamic length would stay outside a delegate. So the shift by one position is outside, and what is
mixed comes to a piece as two tensors. The state is mutable buffers of the program; a text begins at position 0 with none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn
from torch._higher_order_ops import scan

from mobile_export.emit.executorch.delegable import LayerNormAsProduct
from mobile_export.families.spec import RwkvSpec
from mobile_export.model.rwkv import NOTHING_YET, RwkvDecoder, RwkvState, Sums, weighed

Rows = tuple[torch.Tensor, torch.Tensor]
FIELDS = tuple(field.name for field in dataclasses.fields(RwkvState))


class Norm(LayerNormAsProduct):
    """A norm that is a piece by itself, of the embedding or of a block's input: [1, T, hidden] -> the same."""

    def __init__(self, spec: RwkvSpec) -> None:
        with torch.device("cpu"):
            super().__init__(nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps))


class TimeInput(nn.Module):
    """Normed stream and the same one position before, [1, T, hidden] -> key, value and gate, [1, T, attention_hidden]."""

    def __init__(self, spec: RwkvSpec) -> None:
        super().__init__()
        hidden, inner = spec.hidden_size, spec.attention_hidden_size
        self.mix_key, self.mix_value, self.mix_receptance = (nn.Parameter(torch.zeros(hidden)) for _ in range(3))
        self.key: nn.Module = nn.Linear(hidden, inner, bias=False)
        self.value: nn.Module = nn.Linear(hidden, inner, bias=False)
        self.receptance: nn.Module = nn.Linear(hidden, inner, bias=False)

    def forward(self, now: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        key, value = self.key(between(before, now, self.mix_key)), self.value(between(before, now, self.mix_value))
        return key, value, torch.sigmoid(self.receptance(between(before, now, self.mix_receptance)))


class TimeOutput(nn.Module):
    """Stream [1, T, hidden], gate and mean [1, T, attention_hidden] -> the stream with both in, and that normed."""

    def __init__(self, spec: RwkvSpec) -> None:
        super().__init__()
        hidden, inner = spec.hidden_size, spec.attention_hidden_size
        self.attention = nn.ModuleDict({"output": nn.Linear(inner, hidden, bias=False)})
        self.ffn = nn.ModuleDict({"norm": nn.LayerNorm(hidden, eps=spec.norm_eps)})

    def forward(self, x: torch.Tensor, gate: torch.Tensor, mean: torch.Tensor) -> Rows:
        x = x + self.attention["output"](gate * mean)
        return x, self.ffn["norm"](x)


class ChannelOutput(nn.Module):
    """Stream, normed stream and the same one position before, all [1, T, hidden] -> the stream after the block."""

    def __init__(self, spec: RwkvSpec) -> None:
        super().__init__()
        hidden, wide = spec.hidden_size, spec.intermediate_size
        self.mix_key, self.mix_receptance = (nn.Parameter(torch.zeros(hidden)) for _ in range(2))
        self.key: nn.Module = nn.Linear(hidden, wide, bias=False)
        self.receptance: nn.Module = nn.Linear(hidden, hidden, bias=False)
        self.value: nn.Module = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: torch.Tensor, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        wide = torch.relu(self.key(between(before, now, self.mix_key)))
        gate = torch.sigmoid(self.receptance(between(before, now, self.mix_receptance)))
        return x + gate * self.value(wide * wide)


class PteRwkvBlock(nn.Module):
    """RwkvBlock of its lowered pieces. delegates: by prefix; prefix: the block's; decay, bonus: [attention_hidden]."""

    decay: torch.Tensor
    bonus: torch.Tensor

    def __init__(self, delegates: Mapping[str, nn.Module], prefix: str, decay: torch.Tensor, bonus: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.time_input = delegates[f"{prefix}attention.norm."], delegates[f"{prefix}attention."]
        self.time_output, self.channel_output = delegates[prefix], delegates[f"{prefix}ffn."]
        self.register_buffer("decay", decay)
        self.register_buffer("bonus", bonus)

    def forward(self, x: torch.Tensor, state: RwkvState) -> tuple[torch.Tensor, RwkvState]:
        now = self.norm(x)
        before, time_input = shifted(now, state.time_input)
        key, value, gate = self.time_input(now, before)
        mean, sums = self._means(key[0], value[0], (state.numerator, state.denominator, state.maximum))
        x, now = self.time_output(x, gate, mean[None])
        before, channel_input = shifted(now, state.channel_input)
        return self.channel_output(x, now, before), RwkvState(time_input, channel_input, *sums)

    def _means(self, key: torch.Tensor, value: torch.Tensor, sums: Sums) -> tuple[torch.Tensor, Sums]:
        """`weighed` from token to token: key and value [T, attention_hidden], sums [attention_hidden]."""

        def token(sums: Sums, arrived: Rows) -> tuple[Sums, torch.Tensor]:
            mean, sums = weighed(sums, *arrived, self.bonus, self.decay)
            return sums, mean

        sums, means = scan(token, sums, (key, value))
        return means, sums


class PteStates(nn.Module):
    """The state of every execution, RwkvState's fields as buffers."""

    def __init__(self, spec: RwkvSpec, slots: int) -> None:
        super().__init__()
        hidden, inner = (1, 1, spec.hidden_size), (spec.attention_hidden_size,)
        for slot in range(slots):
            for name, shape in zip(FIELDS, (hidden, hidden, inner, inner, inner), strict=True):
                self.register_buffer(f"{name}_{slot}", torch.zeros(shape))
        for name in FIELDS:
            nothing = NOTHING_YET if name == "maximum" else 0.0
            self.register_buffer(f"{name}_before", torch.full((1,), nothing), persistent=False)

    def before(self, slot: int, begun: torch.Tensor) -> RwkvState:
        """A slot's state; where nothing has begun, bool [1], that before the first position."""
        return RwkvState(
            *(torch.where(begun, self.get_buffer(f"{name}_{slot}"), self.get_buffer(f"{name}_before")) for name in FIELDS)
        )

    def keep(self, slot: int, state: RwkvState) -> None:
        """Put a slot's state in its place."""
        for name in FIELDS:
            self.get_buffer(f"{name}_{slot}").copy_(getattr(state, name))


class PteRwkvDecoder(RwkvDecoder):
    """RwkvDecoder whose states are buffers. It can be taken up where a text ended or begun anew, which is not checked."""

    def __init__(
        self,
        spec: RwkvSpec,
        schedule: tuple[int, ...],
        *,
        embedding: nn.Module,
        norm: nn.Module,
        blocks: list[PteRwkvBlock],
        head: nn.Module,
        unfold: torch.Tensor | None,
    ) -> None:
        super().__init__(spec, schedule, embedding=embedding, norm=norm, blocks=blocks, head=head, unfold=unfold)
        self.kept = PteStates(spec, len(schedule))

    def hidden(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        x, begun = self.entered(tokens), start > 0
        for slot, stored in enumerate(self.schedule):
            x, state = self.blocks[stored](x, self.kept.before(slot, begun))
            self.kept.keep(slot, state)
        return x


def between(before: torch.Tensor, now: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """`mixed`, as XNNPACK takes it whole: no constant is subtracted from."""
    return before + (now - before) * share


def shifted(now: torch.Tensor, first: torch.Tensor) -> Rows:
    """Each position's predecessor, that of the first one given, [1, T, hidden]; and the last position, [1, 1, hidden]."""
    both = torch.cat((first, now), dim=1)
    return both.narrow(1, 0, now.shape[1]), both.narrow(1, now.shape[1], 1)
