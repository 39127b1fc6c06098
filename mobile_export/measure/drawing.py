"""A diagram laid out once, as plain values: curve.py writes it as SVG, drawing_png.py as PNG.

Lengths are in pixels from the upper left corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 44  # margins
STEPS = (1, 2, 2.5, 5, 10)
INK, GRID, BLUE = "#333333", "#dddddd", "#1667b7"
COLORS = (BLUE, "#c8500a", "#2e8b40", "#8a3fa0", "#b01030", "#7a6a00", "#008b8b", "#666666")  # told apart in grey, too
RADIUS = 2.5


@dataclass(frozen=True)
class Label:
    """Text with its baseline at y, and the end named by anchor at x."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]
    size: int = 12
    color: str = INK


@dataclass(frozen=True)
class Dot:
    """A dot; hollow where it is not filled."""

    x: float
    y: float
    color: str = BLUE
    filled: bool = True


@dataclass(frozen=True)
class Drawing:
    """grid: heights of horizontal lines. line: the corners of a curve, where there is one."""

    grid: tuple[float, ...]
    labels: tuple[Label, ...]
    dots: tuple[Dot, ...]
    line: tuple[tuple[float, float], ...] = ()


def along(share: float) -> float:
    """Where a share of the horizontal axis lies."""
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def up(share: float) -> float:
    """Where a share of the vertical axis lies."""
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def round_step(largest: float) -> float:
    """A round distance between ticks, so that there are at most six.

    >>> round_step(1023), round_step(260.0), round_step(7)
    (200.0, 50.0, 2.0)
    """
    magnitude = 10 ** math.floor(math.log10(largest / 6))
    return float(next(step * magnitude for step in STEPS if step * magnitude * 6 >= largest))
