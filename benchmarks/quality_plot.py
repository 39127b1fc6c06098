"""Plot: divergence against size, of every artifact that benchmarks.quality has measured, from the files its --json wrote.

python -m benchmarks.quality_plot onnx.json pte.json docs/kl-against-size.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobile_export.measure.drawing import (
    BOTTOM,
    COLORS,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Dot,
    Drawing,
    Label,
    along,
    round_step,
    up,
)
from mobile_export.measure.drawing_png import png_of

LEGEND = 120  # pixels for each name
ROOM = 30, 16  # pixels between two names, beside and above each other


def main() -> None:
    """Draw the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="on one text")
    parser.add_argument("png", type=Path)
    asked = parser.parse_args()
    measured = [row for results in asked.results for row in json.loads(results.read_text())["measured"].values()]
    asked.png.write_bytes(png_of(draw(measured)))


def draw(measured: Sequence[dict[str, Any]]) -> Drawing:
    """A dot for each artifact with its recipe's name, a colour for each subject and format; nats by their logarithm.

    Args:
        measured: rows of benchmarks.quality: subject, recipe, format, bytes and kl.
    """
    sizes, divergences = [row["bytes"] / 1e6 for row in measured], [row["kl"] for row in measured]
    ticks, x_step = _ticks(min(divergences), max(divergences)), round_step(max(max(sizes) - min(sizes), 6.0))
    x_begin = x_step * (math.ceil(min(sizes) / x_step) - 1)
    columns = math.ceil((max(sizes) - x_begin) / x_step) + 1
    kinds = list(dict.fromkeys((row["subject"], row["format"]) for row in measured))
    colors = dict(zip(kinds, COLORS, strict=False))

    def height(nats: float) -> float:
        return up(math.log(nats / ticks[0]) / math.log(ticks[-1] / ticks[0]))

    dots = [
        Dot(along((size - x_begin) / (columns * x_step)), height(kl), colors[row["subject"], row["format"]])
        for row, size, kl in zip(measured, sizes, divergences, strict=True)
    ]
    return Drawing(
        grid=tuple(map(height, ticks)),
        labels=(
            Label(LEFT, 18, "KL from float32, nats a token", "start", 14),
            *(
                Label(LEFT + LEGEND * at, 34, f"{subject}, {form}", "start", color=colors[subject, form])
                for at, (subject, form) in enumerate(kinds)
            ),
            *(Label(LEFT - 8, height(tick) + 4, f"{tick:g}", "end") for tick in ticks),
            *(
                Label(along(tick / columns), HEIGHT - BOTTOM + 18, f"{x_begin + tick * x_step:g}", "middle")
                for tick in range(columns + 1)
            ),
            Label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "MB", "middle"),
            *named(dots, [row["recipe"] for row in measured]),
        ),
        dots=tuple(dots),
    )


def _ticks(least: float, largest: float) -> list[float]:
    """1, 2, 5, 10 and so on, from below the least to above the largest."""
    every = [mantissa * 10.0**exponent for exponent in range(-9, 3) for mantissa in (1, 2, 5)]
    low, high = max(tick for tick in every if tick <= least), min(tick for tick in every if tick >= largest)
    return [tick for tick in every if low <= tick <= high]


def named(dots: Sequence[Dot], names: Sequence[str]) -> list[Label]:
    """A name for each dot, on its right; on its left where there is another dot's."""
    labels: list[Label] = []
    for dot, name in zip(dots, names, strict=True):
        crowded = any(abs(other.x - dot.x) < ROOM[0] and abs(other.y - dot.y) < ROOM[1] for other in labels)
        side, anchor = (-5.0, "end") if crowded else (5.0, "start")
        labels.append(Label(dot.x + side, dot.y - 5, name, anchor, color=dot.color))
    return labels


if __name__ == "__main__":
    main()
