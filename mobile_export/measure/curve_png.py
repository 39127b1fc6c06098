"""Decode rates over the context as PNG, for what shows no SVG. Pillow draws it: the extra `plots`."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence

from mobile_export.errors import MissingTool
from mobile_export.measure.curve import BLUE, GRID, HEIGHT, INK, LEFT, RADIUS, RIGHT, WIDTH, draw
from mobile_export.measure.profile import CurvePoint

SCALE = 2  # pixels a unit of the drawing: sharp on screens of today
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def check_png() -> None:
    """Say before anything is measured that it could not be drawn.

    Raises:
        MissingTool: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingTool("pillow", "is not installed", "pip install 'mobile-export[plots]', or name a file that ends in .svg")


def curve_png(points: Sequence[CurvePoint], title: str) -> bytes:
    """The curve as the bytes of a PNG, 1280 x 720."""
    from PIL import Image, ImageDraw, ImageFont

    drawing = draw(points, title)
    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for y in drawing.grid:
        pen.line([(SCALE * LEFT, SCALE * y), (SCALE * (WIDTH - RIGHT), SCALE * y)], fill=GRID, width=SCALE)
    for label in drawing.labels:
        font = ImageFont.load_default(SCALE * label.size)
        pen.text((SCALE * label.x, SCALE * label.y), label.text, fill=INK, font=font, anchor=ANCHORS[label.anchor])
    line = [(SCALE * x, SCALE * y) for x, y in drawing.line]
    pen.line(line, fill=BLUE, width=2 * SCALE, joint="curve")
    for x, y in line:
        around = SCALE * RADIUS
        pen.ellipse([x - around, y - around, x + around, y + around], fill=BLUE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
