"""Lays out receipts, forms and bar charts on a scene, with what stands in them as keys and values."""

import random

from PIL import ImageDraw, ImageFont

from training.pictures import (
    BAR,
    COLOURS,
    NOTHING_HELD_OUT,
    NUMBER,
    WORD,
    HeldOut,
    Scene,
    Thing,
    font_files,
    load_font,
    random_number,
    visible_colours,
    write_text,
)
from training.words import ITEMS, KEYS, TOTAL, random_word


# Documents are printed in dark ink on light paper.
INK = ("black", "black", "blue", "purple")
LAYOUTS = ("receipt", "form", "chart")
# Rows closer than this many image tokens (28 pixels) would share one.
ROW_PITCH = (1.15, 1.4)


def _put(
    scene: Scene,
    rng: random.Random,
    kind: str,
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont,
    anchor: tuple[float, float],
    share: float,
) -> Thing:
    """Write a text whose vertical middle is at anchor[1]; anchor[0] is at `share` of its width."""
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left, bottom - top
    x, y = anchor[0] - share * width, anchor[1] - height / 2
    write_text(scene, rng, kind, text, colour, font, (x, y, x + width, y + height))
    return scene.things[-1]


def _paper(rng: random.Random, size: tuple[int, int], layout: str) -> Scene:
    low = rng.choice((236, 250))
    return Scene.blank(size, tuple(rng.randint(low, 255) for _ in range(3)), layout)


def _font(
    rng: random.Random, size: float, held_out: HeldOut, widest: str = "", width: float = 0
) -> ImageFont.FreeTypeFont:
    """Choose a font, made smaller where it would write `widest` wider than `width` pixels."""
    path = rng.choice(font_files(held_out=held_out.fonts))
    font = load_font(path, max(8, round(size)))
    length = font.getlength(widest)
    return font if length <= width or not widest else load_font(path, max(6, int(size * width / length)))


def _write_rows(
    scene: Scene,
    rng: random.Random,
    rows: list[tuple[tuple[str, str], tuple[str, str]]],
    cell: float,
    font: ImageFont.FreeTypeFont,
    value_at: tuple[float, float],
) -> None:
    """Write rows of (kind, text) pairs below each other, and keep their values in the scene.

    `value_at` says where values are anchored, as a share of the width, and at which share of their own width.
    """
    pitch = min(cell * rng.uniform(*ROW_PITCH), (scene.image.height - cell / 2) / len(rows))
    y = rng.uniform(pitch / 2 + 2, max(pitch / 2 + 2, scene.image.height - pitch * (len(rows) - 0.5) - 2))
    margin = rng.uniform(0.03, 0.1) * scene.image.width
    ink = rng.choice(INK)
    for key, value in rows:
        _put(scene, rng, *key, ink, font, (margin, y), 0)
        anchor = (value_at[0] * scene.image.width, y)
        scene.values.append(_put(scene, rng, *value, ink, font, anchor, value_at[1]))
        y += pitch


def _most_rows(size: tuple[int, int], cell: float, most: int) -> int:
    return max(2, min(most, int(size[1] / (cell * ROW_PITCH[1]))))


def draw_receipt(
    rng: random.Random, size: tuple[int, int], cell: float, font_size: float, held_out: HeldOut = NOTHING_HELD_OUT
) -> Scene:
    """Draw a receipt: items with prices, and their total.

    Args:
        rng: Source of everything that is random.
        size: (width, height) of the canvas in pixels.
        cell: Side of one image token in canvas pixels.
        font_size: Font size in canvas pixels.
        held_out: What to take from what training never shows.

    Returns:
        The scene; `entries` are the items and the total.
    """
    scene = _paper(rng, size, "receipt")
    items = rng.sample(ITEMS, rng.randint(1, _most_rows(size, cell, 6) - 1))
    cents = [rng.randint(20, 1999) for _ in items]
    scene.entries = [
        (item, f"{price / 100:.2f}") for item, price in zip([*items, TOTAL], [*cents, sum(cents)], strict=True)
    ]
    rows = [((WORD, item), (NUMBER, price)) for item, price in scene.entries]
    font = _font(
        rng, font_size, held_out, max((f"{item}  {price}" for item, price in scene.entries), key=len), 0.8 * size[0]
    )
    # Prices end at the right margin, or begin in a column of their own.
    value_at = (0.62, 0) if held_out.layouts else (rng.uniform(0.9, 0.97), 1)
    _write_rows(scene, rng, rows, cell, font, value_at)
    return scene


def draw_form(
    rng: random.Random, size: tuple[int, int], cell: float, font_size: float, held_out: HeldOut = NOTHING_HELD_OUT
) -> Scene:
    """Draw a form: keys with a colon, each followed by its value.

    Args:
        rng: Source of everything that is random.
        size: (width, height) of the canvas in pixels.
        cell: Side of one image token in canvas pixels.
        font_size: Font size in canvas pixels.
        held_out: What to take from what training never shows.

    Returns:
        The scene; `entries` are the keys and values.
    """
    scene = _paper(rng, size, "form")
    keys = rng.sample(list(KEYS), rng.randint(2, _most_rows(size, cell, 5)))
    for key in keys:
        value = random_number(rng, rng.randint(1, 4)) if KEYS[key] else random_word(rng, held_out.words)
        scene.entries.append((key, value))
    rows = [((WORD, f"{key}:"), (NUMBER if KEYS[key] else WORD, value)) for key, value in scene.entries]
    longest_value = max((value for _, value in scene.entries), key=len)
    font = _font(rng, font_size, held_out, f"{max(keys, key=len)}: {longest_value.upper()}", 0.85 * size[0])
    widest = max(font.getlength(f"{key}: ") for key in keys) / size[0]
    # Values begin in a column of their own, or end at the right margin.
    value_at = (0.95, 1) if held_out.layouts else (0.1 + widest, 0)
    _write_rows(scene, rng, rows, cell, font, value_at)
    return scene


def draw_chart(
    rng: random.Random, size: tuple[int, int], cell: float, font_size: float, held_out: HeldOut = NOTHING_HELD_OUT
) -> Scene:
    """Draw a bar chart: each bar with its letter below and its value above.

    Args:
        rng: Source of everything that is random.
        size: (width, height) of the canvas in pixels.
        cell: Side of one image token in canvas pixels.
        font_size: Font size in canvas pixels.
        held_out: What to take from what training never shows.

    Returns:
        The scene; `entries` are the letters and values, from left to right.
    """
    scene = _paper(rng, size, "chart")
    width, height = size
    count = max(2, min(rng.randint(3, 5), int(width / (cell * 1.5))))
    letters = rng.sample("ABCDEFGH", count)
    # Values at least six apart: the eye, too, needs a difference to see.
    values = rng.sample(range(rng.randint(6, 12), 100, 6), count)
    scene.entries = [(letter, str(value)) for letter, value in zip(letters, values, strict=True)]
    font = _font(rng, font_size, held_out)
    floor, ceiling = height - 1.2 * cell, 1.3 * cell
    colours = visible_colours(scene.image.getpixel((0, 0)))
    shared = rng.choice(colours) if rng.random() < 0.5 else None
    ink = rng.choice(INK)
    step = width / count
    for index, (letter, value) in enumerate(scene.entries):
        centre, half = step * (index + 0.5), step * rng.uniform(0.22, 0.36)
        top = floor - (floor - ceiling) * int(value) / max(values)
        box = (centre - half, top, centre + half, floor)
        colour = shared or rng.choice(colours)
        ImageDraw.Draw(scene.image).rectangle(box, fill=COLOURS[colour])
        scene.things.append(Thing(BAR, colour, box))
        ImageDraw.Draw(scene.owner).rectangle(box, fill=len(scene.things))
        _put(scene, rng, WORD, letter, ink, font, (centre, floor + 0.6 * cell), 0.5)
        scene.values.append(_put(scene, rng, NUMBER, value, ink, font, (centre, top - 0.55 * cell), 0.5))
    ImageDraw.Draw(scene.image).line((4, floor, width - 4, floor), fill=(30, 30, 30), width=max(1, round(cell / 20)))
    return scene


DRAW = {"receipt": draw_receipt, "form": draw_form, "chart": draw_chart}
