"""Draws on pictures: the grid of their tiles, and boxes."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps


COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#bf5af2", "#bc4c00", "#0a7ea4")
# Longer side, in pixels, of what is drawn: small pictures grow so that lines and numbers have room, large ones shrink.
SMALLEST, LARGEST = 640, 1280


def upright(path: str) -> Image.Image:
    """Open a picture as a person should see it: RGB, turned by its EXIF orientation, transparency on white."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def draw_tiles(picture: Image.Image, plan: Any) -> Image.Image:
    """Draw the grid by which a picture is cut, each tile with its number.

    Args:
        picture: The picture; left as it is.
        plan: Its tile plan, from `image_processor.plan(picture)`.

    Returns:
        A copy in a size for the screen. It has the picture's proportions; the tiles are squares only on their canvas.
    """
    copy, draw, font = _canvas(picture)
    across, down = (side / canvas for side, canvas in zip(copy.size, plan.canvas_size, strict=True))
    for number, (left, top, right, bottom) in enumerate(plan.boxes, start=1):
        corners = (left * across, top * down, right * across - 1, bottom * down - 1)
        draw.rectangle(corners, outline="white", width=4)
        draw.rectangle(corners, outline=COLOURS[0], width=2)
        _write_badge(draw, corners[:2], str(number), COLOURS[0], font)
    return copy


def draw_boxes(picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]]) -> Image.Image:
    """Draw boxes on a picture, numbered in their order.

    Args:
        picture: The picture; left as it is.
        boxes: Boxes (left, top, right, bottom) in its pixels.

    Returns:
        A copy in a size for the screen.
    """
    copy, draw, font = _canvas(picture)
    scale = copy.width / picture.width
    for index, box in enumerate(boxes):
        corners = tuple(edge * scale for edge in box)
        colour = COLOURS[(index + 1) % len(COLOURS)]  # the first colour is the grid's
        draw.rectangle(corners, outline="white", width=6)
        draw.rectangle(corners, outline=colour, width=4)
        _write_badge(draw, corners[:2], str(index + 1), colour, font)
    return copy


def _canvas(picture: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw, Any]:
    side = max(picture.size)
    scale = min(max(side, SMALLEST), LARGEST) / side
    copy = picture.convert("RGB").resize([max(1, round(edge * scale)) for edge in picture.size])
    return copy, ImageDraw.Draw(copy), ImageFont.load_default(size=28)


def _write_badge(draw: ImageDraw.ImageDraw, corner: Sequence[float], text: str, colour: str, font: Any) -> None:
    """Write white on a patch of colour whose upper left corner is given."""
    left, top = corner
    width = draw.textlength(text, font=font) + 18
    draw.rectangle((left, top, left + width, top + 36), fill=colour)
    draw.text((left + width / 2, top + 18), text, fill="white", font=font, anchor="mm")
