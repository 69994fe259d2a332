"""Pictures for the screen: upright, in a fit size, with the grid of their tiles."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps


GRID_COLOUR = "#1f6feb"
# Longer side, in pixels, of what is drawn: small pictures grow so that lines and numbers have room, large ones shrink.
SMALLEST, LARGEST = 640, 1280


def upright(picture: Image.Image) -> Image.Image:
    """Show a picture as a person should see it: RGB, turned by its EXIF orientation, transparency on white."""
    picture = ImageOps.exif_transpose(picture)
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
    copy = on_screen(picture)
    draw, font = ImageDraw.Draw(copy), ImageFont.load_default(size=28)
    across, down = (side / canvas for side, canvas in zip(copy.size, plan.canvas_size, strict=True))
    for number, (left, top, right, bottom) in enumerate(plan.boxes, start=1):
        corners = (left * across, top * down, right * across - 1, bottom * down - 1)
        draw.rectangle(corners, outline="white", width=4)
        draw.rectangle(corners, outline=GRID_COLOUR, width=2)
        _write_badge(draw, corners[:2], str(number), GRID_COLOUR, font)
    return copy


def on_screen(picture: Image.Image) -> Image.Image:
    """Copy a picture in a size for the screen, RGB."""
    side = max(picture.size)
    scale = min(max(side, SMALLEST), LARGEST) / side
    return picture.convert("RGB").resize([max(1, round(edge * scale)) for edge in picture.size])


def _write_badge(draw: ImageDraw.ImageDraw, corner: Sequence[float], text: str, colour: str, font: Any) -> None:
    """Write white on a patch of colour whose upper left corner is given."""
    left, top = corner
    width = draw.textlength(text, font=font) + 18
    draw.rectangle((left, top, left + width, top + 36), fill=colour)
    draw.text((left + width / 2, top + 18), text, fill="white", font=font, anchor="mm")
