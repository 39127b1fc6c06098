"""Draws what every matrix costs at 4 bits: over the blocks, on a logarithmic scale, a colour for each kind of matrix."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from mobile_export.measure.drawing import BOTTOM, COLORS, HEIGHT, LEFT, RIGHT, WIDTH, Dot, Drawing, Label, along, round_step, up
from mobile_export.quantize.sensitivity import Sensitivity

LEAST = 1e-7  # nats: what lies below it is drawn there
LETTER, GAP = 5.6, 12  # pixels: a letter of the legend, and what lies between its names


def draw(sensitivities: Sequence[Sensitivity], four: Collection[str], title: str) -> Drawing:
    """A dot for every matrix, hollow where it was given 4 bits; a table or a head stands beside the blocks.

    Args:
        sensitivities: at least one.
        four: names of those with 4 bits.
    """
    places = {s.name: _place(s.name) for s in sensitivities}
    blocks = 1 + max((block for block, _ in places.values() if block is not None), default=0)
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    color = {kind: COLORS[number % len(COLORS)] for number, kind in enumerate(kinds)}
    heights = {s.name: math.log10(max(s.kl, LEAST)) for s in sensitivities}
    low, high = math.floor(min(heights.values())), math.floor(max(heights.values())) + 1

    def x(block: int | None) -> float:
        return along((0.5 + (blocks if block is None else block)) / (blocks + 1))

    def y(height: float) -> float:
        return up((height - low) / (high - low))

    step = math.ceil(round_step(blocks)) if blocks > 6 else 1
    return Drawing(
        grid=tuple(y(decade) for decade in range(low, high + 1)),
        labels=(
            Label(LEFT, 18, title, "start", 14),
            *(Label(LEFT - 8, y(decade) + 4, f"{10.0**decade:g}", "end") for decade in range(low, high + 1)),
            *(Label(x(block), HEIGHT - BOTTOM + 18, str(block), "middle") for block in range(0, blocks, step)),
            *(Label(left, 34, kind, "start", 10, color[kind]) for kind, left in zip(kinds, _side_by_side(kinds), strict=True)),
            Label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "block; nats a token; hollow: 4 bits", "middle"),
        ),
        dots=tuple(Dot(x(block), y(heights[name]), color[kind], name not in four) for name, (block, kind) in places.items()),
    )


def _side_by_side(names: Sequence[str]) -> list[float]:
    """Where each name of the legend begins."""
    return [LEFT + sum(LETTER * len(name) + GAP for name in names[:at]) for at in range(len(names))]


def _place(name: str) -> tuple[int | None, str]:
    """A matrix's block, if it lies in one, and what it is there.

    >>> _place("blocks.3.ffn.up.weight"), _place("blocks.3.attention.qkv.weight"), _place("embedding.weight")
    ((3, 'ffn.up'), (3, 'qkv'), (None, 'embedding'))
    """
    if name.startswith("blocks."):
        _, block, rest = name.removesuffix(".weight").split(".", 2)
        return int(block), rest.removeprefix("attention.")
    return None, name.removesuffix(".weight")
