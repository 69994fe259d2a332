"""What the tests of `training/` share: the repository on the path, the published geometry in small, and a scene."""

import random
import sys
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import pictures, tiles  # noqa: E402


GEOMETRY = tiles.Geometry(224, 14, 28)


def draw(function, *arguments, **options):
    """Call a drawing function; without the fonts that it needs, skip."""
    try:
        return function(*arguments, **options)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def scene(seed, shapes=3, digits=3, size=(224, 224)):
    """Draw a scene with a number and some shapes."""
    rng = random.Random(seed)
    texts = [(pictures.NUMBER, pictures.random_number(rng, digits), 30.0)] if digits else []
    return draw(pictures.draw_scene, rng, size, texts, shapes)


def lay_out(things, size=(1000, 500), layout="free", entries=()):
    """Describe a picture without drawing it: things of (kind, colour, box, text)."""
    blank = pictures.Scene(Image.new("RGB", size), Image.new("L", size, 0), layout=layout, entries=list(entries))
    blank.things += [pictures.Thing(*thing) for thing in things]
    blank.values += [pictures.Thing(pictures.NUMBER, "black", (0, 0, 1, 1), value) for _, value in entries]
    return blank
