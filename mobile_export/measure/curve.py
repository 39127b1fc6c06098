"""Draws decode rates over the context as SVG, which every browser shows and which needs no library to write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from mobile_export.measure.profile import CurvePoint

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 44  # margins
STEPS = (1, 2, 2.5, 5, 10)


def curve_svg(points: Sequence[CurvePoint], title: str) -> str:
    """A line of tokens/s over tokens in the cache, both axes from 0."""
    x_step = _step(max(point.context for point in points))
    y_step = _step(max(point.decode_tokens_per_s for point in points))
    x_end = x_step * math.ceil(max(point.context for point in points) / x_step)
    y_end = y_step * math.ceil(max(point.decode_tokens_per_s for point in points) / y_step)

    def x(context: float) -> float:
        return round(LEFT + context / x_end * (WIDTH - LEFT - RIGHT), 1)

    def y(rate: float) -> float:
        return round(HEIGHT - BOTTOM - rate / y_end * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for tick in range(round(y_end / y_step) + 1):
        at = tick * y_step
        lines.append(f'<path class="grid" d="M{LEFT} {y(at)}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(at) + 4}" text-anchor="end">{at:g}</text>')
    for tick in range(round(x_end / x_step) + 1):
        at = tick * x_step
        lines.append(f'<text x="{x(at)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{at:g}</text>')
    path = "L".join(f"{x(point.context)} {y(point.decode_tokens_per_s)}" for point in points)
    dots = "".join(
        f'<circle cx="{x(point.context)}" cy="{y(point.decode_tokens_per_s)}" r="2.5">'
        f"<title>{point.context} tokens: {point.decode_tokens_per_s:.1f} tokens/s</title></circle>"
        for point in points
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            "<style>svg{background:#fff;font:12px sans-serif}text{fill:#333}.grid{stroke:#ddd}"
            ".line{fill:none;stroke:#1667b7;stroke-width:2}circle{fill:#1667b7}</style>",
            f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
            *lines,
            f'<path class="line" d="M{path}"/>',
            dots,
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">tokens in the cache</text>',
            "</svg>",
            "",
        ]
    )


def _step(largest: float) -> float:
    """A round distance between ticks, so that there are at most six.

    >>> _step(1023), _step(260.0), _step(7)
    (200.0, 50.0, 2.0)
    """
    magnitude = 10 ** math.floor(math.log10(largest / 6))
    return float(next(step * magnitude for step in STEPS if step * magnitude * 6 >= largest))
