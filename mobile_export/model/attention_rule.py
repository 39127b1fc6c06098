"""Which positions an execution attends to, and what is done to its scores: plain values, and the bias they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mobile_export.families.spec import DecoderSpec


@dataclass(frozen=True)
class AttentionRule:
    """One execution's rule; fields as in DecoderSpec and BlockSpec."""

    scale: float
    window: int | None = None
    chunk: int | None = None
    alibi: Literal["none", "bloom", "falcon"] = "none"
    softcap: float | None = None
    query_temperature: tuple[float, float] | None = None


def attention_rules(spec: DecoderSpec, blocks: Sequence[int], schedule: Sequence[int]) -> tuple[AttentionRule, ...]:
    """The rule of every execution; one of a conv block goes unused.

    Args:
        blocks, schedule: SharingPlan's: the file's number of each stored block, and the stored block of each execution.
    """
    scale = spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
    kinds = [spec.blocks[blocks[stored]] for stored in schedule]
    return tuple(
        AttentionRule(scale, kind.window, kind.chunk, spec.alibi, spec.attention_softcap, kind.query_temperature)
        for kind in kinds
    )


def seen(rule: AttentionRule, rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Whether a query at position rows[i] attends to the key at position keys[j]: bool [len(rows), len(keys)]."""
    key, row = keys[None], rows[:, None]
    visible = key <= row
    if rule.window is not None:
        visible = visible & (key > row - rule.window)
    if rule.chunk is not None:
        visible = visible & (key // rule.chunk == row // rule.chunk)
    return visible


def alibi_bias(rule: AttentionRule, heads: int, keys: torch.Tensor) -> torch.Tensor:
    """What is added to scaled scores: float32 [heads, 1, len(keys)].

    The slope times the key's own position: a softmax does not see the difference to its distance. Falcon was trained with
    the product rounded to bfloat16, which does not commute with a shift, so distances would not do.
    Source: arXiv:2108.12409; Falcon's rounding: transformers `modeling_falcon.py`, build_alibi_tensor.
    """
    slopes = torch.tensor(alibi_slopes(heads))[:, None, None]
    if rule.alibi == "falcon":
        return (slopes.bfloat16() * keys).float() * rule.scale
    return slopes * keys


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """A geometric series from 2 ** (-8 / heads); heads beyond a power of two take every other one of the next series.

    >>> alibi_slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    >>> alibi_slopes(3)
    (0.0625, 0.00390625, 0.25)
    """
    whole = 2 ** math.floor(math.log2(heads))
    series = [2.0 ** (-8 * i / whole) for i in range(1, whole + 1)]
    between = [2.0 ** (-4 * i / whole) for i in range(1, 2 * (heads - whole) + 1, 2)]
    return (*series, *between)


def temperature(rule: AttentionRule, rows: torch.Tensor) -> torch.Tensor:
    """What a query at position rows[i] is multiplied with: float32 [1, len(rows), 1, 1]."""
    assert rule.query_temperature
    floor_scale, attn_scale = rule.query_temperature
    return (torch.log1p(torch.floor((rows.float() + 1) / floor_scale)) * attn_scale + 1)[None, :, None, None]
