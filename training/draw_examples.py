"""Draws the pictures in `examples/`, which training never sees: laid out by hand, in shades of their own seed.

Run it with `python -m training.draw_examples`.
"""

import random

from PIL import Image, ImageFont

from training.pictures import Scene, draw_shape, font_files, write_number
from training.prepare import ROOT


SEED = 990_001
# File -> size, background, shapes (kind, colour, box), number (text, colour, font size, left, top).
EXAMPLES = {
    "shapes.png": (
        (600, 300),
        (250, 250, 244),
        (
            ("circle", "red", (40, 36, 150, 146)),
            ("square", "blue", (196, 150, 286, 240)),
            ("triangle", "green", (352, 40, 462, 150)),
            ("star", "orange", (470, 170, 570, 270)),
        ),
        ("4072", "purple", 44, 48, 212),
    ),
    "number.png": (
        (224, 224),
        (238, 244, 250),
        (("diamond", "pink", (140, 28, 200, 88)),),
        ("385", "blue", 56, 40, 120),
    ),
}


def draw_example(name: str) -> Scene:
    """Draw one picture of `EXAMPLES`."""
    size, background, shapes, number = EXAMPLES[name]
    rng = random.Random(f"{SEED} {name}")
    scene = Scene(Image.new("RGB", size, background), Image.new("L", size, 0))
    for kind, colour, box in shapes:
        draw_shape(scene, rng, kind, colour, box)
    text, colour, font_size, left, top = number
    font = ImageFont.truetype(str(font_files()[1]), font_size)
    x0, y0, x1, y1 = font.getbbox(text)
    write_number(scene, rng, text, colour, font, (left, top, left + x1 - x0, top + y1 - y0))
    return scene


def main() -> None:
    """Write all examples."""
    (ROOT / "examples").mkdir(exist_ok=True)
    for name in EXAMPLES:
        draw_example(name).image.save(ROOT / "examples" / name, optimize=True)


if __name__ == "__main__":
    main()
