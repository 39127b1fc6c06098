"""RWKV-4: the same outward idea as the Decoder, (tokens, start) -> logits, with a state of five rows behind it.

Source: arXiv:2305.13048, section 3; the running maximum of its appendix D keeps the exponentials in range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mobile_export.families.spec import RwkvSpec

Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # numerator, denominator, maximum
NOTHING_YET = -1e30  # the maximum over no position: finite, so that a difference of two of them is no NaN


@dataclass(frozen=True)
class RwkvState:
    """What an execution hands from one call to the next.

    time_input, channel_input: the last position's normed stream, [1, 1, hidden].
    numerator, denominator: the two decayed sums, over exp(maximum), [1, 1, attention_hidden].
    """

    time_input: torch.Tensor
    channel_input: torch.Tensor
    numerator: torch.Tensor
    denominator: torch.Tensor
    maximum: torch.Tensor


def empty_state(spec: RwkvSpec) -> RwkvState:
    """The state before the first position."""
    hidden, inner = torch.zeros(1, 1, spec.hidden_size), torch.zeros(1, 1, spec.attention_hidden_size)
    return RwkvState(hidden, hidden, inner, inner, inner + NOTHING_YET)


class TimeMix(nn.Module):
    """What stands in attention's place: a decayed mean of values, weighed by exp(key), the newest with a bonus."""

    def __init__(self, spec: RwkvSpec) -> None:
        super().__init__()
        hidden, inner = spec.hidden_size, spec.attention_hidden_size
        self.norm: nn.Module = nn.LayerNorm(hidden, eps=spec.norm_eps)
        self.mix_key, self.mix_value, self.mix_receptance = (nn.Parameter(torch.zeros(hidden)) for _ in range(3))
        self.decay, self.bonus = (nn.Parameter(torch.zeros(inner)) for _ in range(2))
        self.key: nn.Module = nn.Linear(hidden, inner, bias=False)
        self.value: nn.Module = nn.Linear(hidden, inner, bias=False)
        self.receptance: nn.Module = nn.Linear(hidden, inner, bias=False)
        self.output: nn.Module = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor, state: RwkvState) -> tuple[torch.Tensor, RwkvState]:
        """Residual stream [1, T, hidden] -> what is added to it, and the state after its last position."""
        now = self.norm(x)
        before = torch.cat((state.time_input, now[:, :-1]), dim=1)
        key, value = self.key(mixed(now, before, self.mix_key)), self.value(mixed(now, before, self.mix_value))
        gate = torch.sigmoid(self.receptance(mixed(now, before, self.mix_receptance)))
        means, sums = [], (state.numerator, state.denominator, state.maximum)
        for k, v in zip(key.split(1, dim=1), value.split(1, dim=1), strict=True):
            mean, sums = weighed(sums, k, v, self.bonus, self.decay)
            means.append(mean)
        after = RwkvState(now[:, -1:], state.channel_input, *sums)
        return self.output(gate * torch.cat(means, dim=1)), after


class ChannelMix(nn.Module):
    """What stands in the feed-forward's place: a squared relu, gated."""

    def __init__(self, spec: RwkvSpec) -> None:
        super().__init__()
        hidden, wide = spec.hidden_size, spec.intermediate_size
        self.norm: nn.Module = nn.LayerNorm(hidden, eps=spec.norm_eps)
        self.mix_key, self.mix_receptance = (nn.Parameter(torch.zeros(hidden)) for _ in range(2))
        self.key: nn.Module = nn.Linear(hidden, wide, bias=False)
        self.receptance: nn.Module = nn.Linear(hidden, hidden, bias=False)
        self.value: nn.Module = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream and the last call's newest normed position -> what is added, and this call's newest."""
        now = self.norm(x)
        shifted = torch.cat((before, now[:, :-1]), dim=1)
        gate = torch.sigmoid(self.receptance(mixed(now, shifted, self.mix_receptance)))
        wide = torch.relu(self.key(mixed(now, shifted, self.mix_key))).square()
        return gate * self.value(wide), now[:, -1:]


class RwkvBlock(nn.Module):
    """One stored block."""

    def __init__(self, spec: RwkvSpec) -> None:
        super().__init__()
        self.attention, self.ffn = TimeMix(spec), ChannelMix(spec)

    def forward(self, x: torch.Tensor, state: RwkvState) -> tuple[torch.Tensor, RwkvState]:
        added, state = self.attention(x, state)
        x = x + added
        added, newest = self.ffn(x, state.channel_input)
        after = RwkvState(state.time_input, newest, state.numerator, state.denominator, state.maximum)
        return x + added, after


class RwkvHead(nn.Module):
    """Residual stream [1, T, hidden] -> logits [1, T, vocab]."""

    def __init__(self, spec: RwkvSpec) -> None:
        super().__init__()
        self.norm: nn.Module = nn.LayerNorm(spec.hidden_size, eps=spec.final_norm_eps)
        self.linear: nn.Module = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


class RwkvDecoder(nn.Module):
    """The whole model, each execution with its own state.

    embedding: tokens int64 [1, T] -> [1, T, hidden]; unfold: what those are multiplied with, float32 (hidden,), None for
        nothing; norm: on those; blocks: called as RwkvBlock.
    """

    unfold: torch.Tensor | None

    def __init__(
        self,
        spec: RwkvSpec,
        schedule: tuple[int, ...],
        *,
        embedding: nn.Module,
        norm: nn.Module,
        blocks: Iterable[nn.Module],
        head: nn.Module,
        unfold: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("unfold", unfold)
        self.spec, self.schedule = spec, schedule
        self.embedding, self.norm, self.head = embedding, norm, head
        self.blocks = nn.ModuleList(blocks)
        self.states: list[RwkvState] = []
        self.position = 0

    def forward(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Run tokens int64 [1, T] that follow `start` int64 [1] positions; logits float32 [1, 1, vocab] of the last."""
        return self.head(self.hidden(tokens, start)[:, -1:, :])

    def hidden(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """The residual stream after the last execution, [1, T, hidden]. A state cannot be wound back, save to 0."""
        position = cast("int", start[0].item())
        if position == 0:
            self.states = [empty_state(self.spec)] * len(self.schedule)
        assert position in (0, self.position), f"the state is after {self.position} positions, not {position}"
        x = self.entered(tokens)
        for slot, stored in enumerate(self.schedule):
            x, self.states[slot] = self.blocks[stored](x, self.states[slot])
        self.position = position + tokens.shape[1]
        return x

    def entered(self, tokens: torch.Tensor) -> torch.Tensor:
        """The stream before the first block, [1, T, hidden]."""
        x = self.embedding(tokens)
        return self.norm(x if self.unfold is None else x * self.unfold)


def weighed(
    sums: Sums, key: torch.Tensor, value: torch.Tensor, bonus: torch.Tensor, decay: torch.Tensor
) -> tuple[torch.Tensor, Sums]:
    """One position's mean of the values up to it, and the sums with it in: all of one shape, channels last."""
    above, below, top = sums
    favoured = key + bonus
    highest = torch.maximum(top, favoured)
    past, newest = torch.exp(top - highest), torch.exp(favoured - highest)
    mean = (past * above + newest * value) / (past * below + newest)
    faded = top + decay
    highest = torch.maximum(faded, key)
    past, newest = torch.exp(faded - highest), torch.exp(key - highest)
    return mean, (past * above + newest * value, past * below + newest, highest)


def mixed(now: torch.Tensor, before: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Each channel's share of this position and the rest of the one before."""
    return now * share + before * (1 - share)
