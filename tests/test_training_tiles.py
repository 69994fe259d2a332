"""Tiles of training equal the image processor's, and their labels say what they show."""

import random

import numpy as np
import pytest
import torch
from training_scenes import GEOMETRY, ROOT, lay_out, scene
from transformers import AutoImageProcessor

from training import data, pictures, tiles


pytestmark = pytest.mark.newest


def test_patch_and_cell_labels_say_what_is_there():
    drawn = pictures.Scene.blank((448, 224), (255, 255, 255))
    rng = random.Random(0)
    pictures.draw_shape(drawn, rng, "square", "red", (28, 28, 84, 84))
    glyphs = (pictures.Glyph("4", (230, 140, 244, 168)), pictures.Glyph("2", (244, 140, 258, 168)))
    drawn.owner.paste(2, (230, 140, 258, 168))
    drawn.things.append(pictures.Thing(pictures.NUMBER, "blue", (230, 140, 258, 168), "42", glyphs))
    labels = tiles.label_tiles(drawn, (2, 1), GEOMETRY)
    assert labels.chars.shape == (2, 64, tiles.SLOTS)
    square, number = tiles.KIND_IDS["square"], tiles.KIND_IDS[pictures.NUMBER]
    assert labels.kinds[0].reshape(8, 8)[1, 1] == square
    assert labels.colours[0].reshape(8, 8)[2, 2] == tiles.COLOUR_IDS["red"]
    assert np.flatnonzero(labels.centres[0]).tolist() == [2 * 8 + 2]
    assert labels.centres[1].sum() == 0
    # The digits lie in columns 6..34 of the second tile, row 5 of its cells.
    assert labels.chars[1, 5 * 8, :2].tolist() == [tiles.CHARACTER_IDS["4"], tiles.CHARACTER_IDS["2"]]
    assert labels.spelled[1, 5 * 8, :2].tolist() == labels.chars[1, 5 * 8, :2].tolist()
    assert labels.kinds[1, 5 * 8] == number
    assert labels.half_chars[1][10].tolist()[1:5] == [5, 5, 3, 3]


def test_edges_stand_at_the_centre_of_each_thing_in_steps_of_its_tile():
    drawn = lay_out(
        [("star", "red", (14, 28, 98, 84)), ("word", "blue", (210, 112, 308, 140), "sun")], size=(448, 224)
    )
    edges = tiles.label_tiles(drawn, (2, 1), GEOMETRY).edges
    # Steps of 7 pixels, counted from 1. The word's centre (259, 126) lies in the second tile, where it begins left of.
    assert edges[0, 2 * 8 + 2].tolist() == [1 + 2, 1 + 4, 1 + 14, 1 + 12]
    assert edges[1, 4 * 8 + 1].tolist() == [1, 1 + 16, 1 + 12, 1 + 20]
    assert np.count_nonzero(edges.sum(-1)) == 2
    thumbnail = tiles.label_tiles(drawn, (1, 1), GEOMETRY).edges
    assert thumbnail[0, 4 * 8 + 4].tolist() == [1 + 15, 1 + 16, 1 + 22, 1 + 20]


@pytest.mark.parametrize(
    ("box", "steps"),
    [
        ((0, 0, 100, 50), [0, 0, 32, 32]),
        ((25, 25, 50, 30), [8, 16, 16, 19]),
        ((-9, 0, 200, 50), [0, 0, 32, 32]),
    ],
)
def test_boxes_are_rounded_to_the_grid(box, steps):
    assert tiles.box_steps(box, (100, 50)) == steps


@pytest.mark.parametrize(("size", "grid"), [((200, 190), (1, 1)), ((600, 300), (2, 1))])
def test_tiles_equal_the_image_processor(size, grid):
    processor = AutoImageProcessor.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)
    drawn = scene("tiles", size=size)
    cut = [tiles.cut_pixels(drawn, grid, 224)]
    if max(grid) > 1:
        cut.append(tiles.cut_pixels(drawn, (1, 1), 224))
    expected = processor(drawn.image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(data.normalise(np.concatenate(cut)), expected, atol=1e-5, rtol=0)
