"""Draws decode rates over the context: laid out once, written as SVG, which every browser shows, or as PNG (curve_png.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

from mobile_export.measure.profile import CurvePoint

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 44  # margins
STEPS = (1, 2, 2.5, 5, 10)
INK, GRID, BLUE = "#333333", "#dddddd", "#1667b7"
RADIUS = 2.5


@dataclass(frozen=True)
class Label:
    """Text with its baseline at y, and the end named by anchor at x."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]
    size: int = 12


@dataclass(frozen=True)
class Drawing:
    """A curve in pixels from the upper left corner. grid: heights of horizontal lines. line: the corners of the curve."""

    grid: tuple[float, ...]
    labels: tuple[Label, ...]
    line: tuple[tuple[float, float], ...]


def draw(points: Sequence[CurvePoint], title: str) -> Drawing:
    """A line of tokens/s over tokens in the cache, both axes from 0."""
    x_step = _step(max(point.context for point in points))
    y_step = _step(max(point.decode_tokens_per_s for point in points))
    x_end = x_step * math.ceil(max(point.context for point in points) / x_step)
    y_end = y_step * math.ceil(max(point.decode_tokens_per_s for point in points) / y_step)

    def x(context: float) -> float:
        return round(LEFT + context / x_end * (WIDTH - LEFT - RIGHT), 1)

    def y(rate: float) -> float:
        return round(HEIGHT - BOTTOM - rate / y_end * (HEIGHT - TOP - BOTTOM), 1)

    rates = [tick * y_step for tick in range(round(y_end / y_step) + 1)]
    contexts = [tick * x_step for tick in range(round(x_end / x_step) + 1)]
    return Drawing(
        grid=tuple(map(y, rates)),
        labels=(
            Label(LEFT, 22, title, "start", 14),
            *(Label(LEFT - 8, y(rate) + 4, f"{rate:g}", "end") for rate in rates),
            *(Label(x(context), HEIGHT - BOTTOM + 18, f"{context:g}", "middle") for context in contexts),
            Label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "tokens in the cache", "middle"),
        ),
        line=tuple((x(point.context), y(point.decode_tokens_per_s)) for point in points),
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


def _step(largest: float) -> float:
    """A round distance between ticks, so that there are at most six.

    >>> _step(1023), _step(260.0), _step(7)
    (200.0, 50.0, 2.0)
    """
    magnitude = 10 ** math.floor(math.log10(largest / 6))
    return float(next(step * magnitude for step in STEPS if step * magnitude * 6 >= largest))
