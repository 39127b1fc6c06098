"""Predicted decode rates over the context, a small SVG within the page of `check`: likely as a line, the interval as a band."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mobile_export.budget.interval import Interval

WIDTH, HEIGHT = 320, 104
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 20  # margins


def rate_curve(points: Sequence[tuple[int, Interval]], asked: float | None) -> str:
    """Tokens a second over tokens in the cache, both axes from 0.

    Args:
        points: tokens in the cache, in order, with the rate.
        asked: the least rate that was asked for: a dashed line.
    """
    x_end, y_end = points[-1][0], _round_up(max(asked or 0, *(rate.high for _, rate in points)))

    def at(position: float, rate: float) -> str:
        x = LEFT + position / x_end * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f} {HEIGHT - BOTTOM - rate / y_end * (HEIGHT - TOP - BOTTOM):.1f}"

    upper = [at(position, rate.high) for position, rate in points]
    lower = [at(position, rate.low) for position, rate in reversed(points)]
    line = [at(position, rate.likely) for position, rate in points]
    first, last = (rate.likely for _, rate in (points[0], points[-1]))
    label = f"decode rate: {first:.0f} tokens/s at the beginning, {last:.0f} with {x_end:,} tokens in the cache"
    limit = f'<path class="asked" d="M{at(0, asked)}L{at(x_end, asked)}"/>' if asked else ""
    middle = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) / 2
    return (
        f'<svg class="rate" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<path class="grid" d="M{at(0, 0)}L{at(x_end, 0)}M{at(0, y_end / 2)}L{at(x_end, y_end / 2)}'
        f'M{at(0, y_end)}L{at(x_end, y_end)}"/>'
        f'<path class="band" d="M{"L".join(upper + lower)}Z"/>{limit}<path class="likely" d="M{"L".join(line)}"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{y_end:,g}</text>'
        f'<text x="{LEFT - 5}" y="{middle + 4}" text-anchor="end">{y_end / 2:,g}</text>'
        f'<text x="{LEFT - 5}" y="{HEIGHT - BOTTOM + 4}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">tokens/s over the context</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{x_end:,}</text></svg>'
    )


def _round_up(value: float) -> float:
    """The next round number, whose half is round, too.

    >>> _round_up(183), _round_up(41), _round_up(0.7)
    (200.0, 60.0, 0.8)
    """
    unit = 10.0 ** math.floor(math.log10(value))
    return next(round(step * unit, 9) for step in (1, 2, 4, 6, 8, 10) if step * unit >= value)
