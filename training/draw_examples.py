"""Draws the pictures in `examples/`, which training never sees: laid out by hand, in shades of their own seed.

Run it with `python -m training.draw_examples`.
"""

import random
from io import BytesIO

from training.durable import write_bytes
from training.pictures import CHINESE, NUMBER, WORD, Scene, draw_shape, font_files, load_font, write_text
from training.prepare import ROOT


SEED = 990_001


def _write(scene: Scene, rng: random.Random, text: tuple[str, str, str], size: int, left: float, top: float) -> None:
    """Write (kind, text, colour) with its ink's corner at a place, in the second of the fonts."""
    kind, words, colour = text
    font = load_font(font_files(kind == CHINESE)[1 if kind != CHINESE else 0], size)
    x0, y0, x1, y1 = font.getbbox(words)
    write_text(scene, rng, kind, words, colour, font, (left, top, left + x1 - x0, top + y1 - y0))


def draw_shapes(rng: random.Random) -> Scene:
    """Draw a scene of four shapes and a number, two tiles wide."""
    scene = Scene.blank((600, 300), (250, 250, 244))
    draw_shape(scene, rng, "circle", "red", (40, 36, 150, 146))
    draw_shape(scene, rng, "square", "blue", (196, 150, 286, 240))
    draw_shape(scene, rng, "triangle", "green", (352, 40, 462, 150))
    draw_shape(scene, rng, "star", "orange", (470, 170, 570, 270))
    _write(scene, rng, (NUMBER, "4072", "purple"), 44, 48, 212)
    return scene


def draw_sign(rng: random.Random) -> Scene:
    """Draw a sign that says the same in English and in Chinese."""
    scene = Scene.blank((240, 220), (255, 246, 214))
    _write(scene, rng, (WORD, "NORTH", "blue"), 44, 30, 46)
    _write(scene, rng, (CHINESE, "北门", "red"), 50, 66, 128)
    return scene


def draw_receipt(rng: random.Random) -> Scene:
    """Draw a receipt of two items."""
    scene = Scene.blank((230, 220), (252, 252, 250))
    for row, (item, price) in enumerate((("MILK", "2.50"), ("BREAD", "3.80"), ("TOTAL", "6.30"))):
        _write(scene, rng, (WORD, item, "black"), 22, 14, 34 + 48 * row)
        _write(scene, rng, (NUMBER, price, "black"), 22, 161, 34 + 48 * row)
    return scene


EXAMPLES = {"shapes.png": draw_shapes, "sign.png": draw_sign, "receipt.png": draw_receipt}


def main() -> None:
    """Write all examples."""
    (ROOT / "examples").mkdir(exist_ok=True)
    for name, draw in EXAMPLES.items():
        buffer = BytesIO()
        draw(random.Random(f"{SEED} {name}")).image.save(buffer, "PNG", optimize=True)
        write_bytes(ROOT / "examples" / name, buffer.getvalue())


if __name__ == "__main__":
    main()
