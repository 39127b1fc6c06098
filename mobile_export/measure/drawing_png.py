"""A drawing as PNG, for what shows no SVG. Pillow draws it: the extra `plots`."""

from __future__ import annotations

import importlib.util
import io

from mobile_export.errors import MissingTool
from mobile_export.measure.drawing import BLUE, GRID, HEIGHT, LEFT, RADIUS, RIGHT, WIDTH, Drawing

SCALE = 2  # pixels a unit of the drawing: sharp on screens of today
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def check_png(instead: str) -> None:
    """Say before anything is measured that it could not be drawn.

    Args:
        instead: what else a user may do.
    Raises:
        MissingTool: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingTool("pillow", "is not installed", f"pip install 'mobile-export[plots]', or {instead}")


def png_of(drawing: Drawing) -> bytes:
    """The bytes of a PNG, 1280 x 720."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for y in drawing.grid:
        pen.line([(SCALE * LEFT, SCALE * y), (SCALE * (WIDTH - RIGHT), SCALE * y)], fill=GRID, width=SCALE)
    for label in drawing.labels:
        font = ImageFont.load_default(SCALE * label.size)
        pen.text((SCALE * label.x, SCALE * label.y), label.text, fill=label.color, font=font, anchor=ANCHORS[label.anchor])
    pen.line([(SCALE * x, SCALE * y) for x, y in drawing.line], fill=BLUE, width=2 * SCALE, joint="curve")
    around = SCALE * RADIUS
    for dot in drawing.dots:
        x, y = SCALE * dot.x, SCALE * dot.y
        fill = dot.color if dot.filled else "white"
        pen.ellipse([x - around, y - around, x + around, y + around], fill=fill, outline=dot.color, width=SCALE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
