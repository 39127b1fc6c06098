"""Draws decode rates over the context: laid out once, written as SVG, which every browser shows, or as PNG (drawing_png.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from mobile_export.measure.drawing import (
    BLUE,
    BOTTOM,
    GRID,
    HEIGHT,
    INK,
    LEFT,
    RADIUS,
    RIGHT,
    WIDTH,
    Dot,
    Drawing,
    Label,
    along,
    round_step,
    up,
)
from mobile_export.measure.profile import CurvePoint


def draw(points: Sequence[CurvePoint], title: str) -> Drawing:
    """A line of tokens/s over tokens in the cache, both axes from 0."""
    x_step = round_step(max(point.context for point in points))
    y_step = round_step(max(point.decode_tokens_per_s for point in points))
    x_end = x_step * math.ceil(max(point.context for point in points) / x_step)
    y_end = y_step * math.ceil(max(point.decode_tokens_per_s for point in points) / y_step)
    rates = [tick * y_step for tick in range(round(y_end / y_step) + 1)]
    contexts = [tick * x_step for tick in range(round(x_end / x_step) + 1)]
    line = tuple((along(point.context / x_end), up(point.decode_tokens_per_s / y_end)) for point in points)
    return Drawing(
        grid=tuple(up(rate / y_end) for rate in rates),
        labels=(
            Label(LEFT, 22, title, "start", 14),
            *(Label(LEFT - 8, up(rate / y_end) + 4, f"{rate:g}", "end") for rate in rates),
            *(Label(along(context / x_end), HEIGHT - BOTTOM + 18, f"{context:g}", "middle") for context in contexts),
            Label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "tokens in the cache", "middle"),
        ),
        dots=tuple(Dot(x, y) for x, y in line),
        line=line,
    )


def curve_svg(points: Sequence[CurvePoint], title: str) -> str:
    """The curve as SVG; a point says its numbers where the mouse is over it."""
    drawing = draw(points, title)
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="{RADIUS}">'
        f"<title>{point.context} tokens: {point.decode_tokens_per_s:.1f} tokens/s</title></circle>"
        for (x, y), point in zip(drawing.line, points, strict=True)
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<style>svg{{background:#fff;font-family:sans-serif}}text{{fill:{INK}}}.grid{{stroke:{GRID}}}"
            f".line{{fill:none;stroke:{BLUE};stroke-width:2}}circle{{fill:{BLUE}}}</style>",
            *(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>' for y in drawing.grid),
            *(
                f'<text x="{label.x}" y="{label.y}" text-anchor="{label.anchor}" font-size="{label.size}">'
                f"{escape(label.text)}</text>"
                for label in drawing.labels
            ),
            f'<path class="line" d="M{"L".join(f"{x} {y}" for x, y in drawing.line)}"/>',
            dots,
            "</svg>",
            "",
        ]
    )
