"""The training pictures show what their description says."""

import random

import numpy as np
import pytest
from training_scenes import draw, scene

from training import pictures


pytestmark = pytest.mark.newest


def test_same_seed_draws_the_same_picture():
    first, again, other = scene("a"), scene("a"), scene("b")
    assert first.image.tobytes() == again.image.tobytes()
    assert first.things == again.things
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize(("chinese", "package"), [(False, "fonts-dejavu-core"), (True, "fonts-wqy-zenhei")])
def test_missing_fonts_name_the_packages(monkeypatch, chinese, package):
    pictures.font_files.cache_clear()
    monkeypatch.setattr(pictures, "FONT_ROOTS", ("/nonexistent",))
    with pytest.raises(FileNotFoundError, match=package):
        pictures.font_files(chinese)
    pictures.font_files.cache_clear()


@pytest.mark.parametrize("chinese", [False, True])
def test_held_out_fonts_are_not_those_of_training(chinese):
    assert not set(draw(pictures.font_files, chinese)) & set(draw(pictures.font_files, chinese, held_out=True))


def test_things_are_drawn_in_their_colour_and_place():
    for seed in range(10):
        drawn = scene(seed)
        pixels, owner = np.asarray(drawn.image).astype(int), np.asarray(drawn.owner)
        for index, thing in enumerate(drawn.things, start=1):
            rows, columns = np.nonzero(owner == index)
            left, top, right, bottom = thing.box
            assert columns.min() >= left - 12
            assert columns.max() <= right + 12
            assert rows.min() >= top - 12
            assert rows.max() <= bottom + 12
            if thing.kind in pictures.SHAPES:
                seen = np.median(pixels[owner == index], axis=0)
                assert np.abs(seen - pictures.COLOURS[thing.colour]).max() <= 18


@pytest.mark.parametrize(("kind", "text"), [("word", "HARBOR"), ("chinese", "开关"), ("number", "4072")])
def test_ink_lies_inside_the_box_and_glyphs_share_it_in_order(kind, text):
    blank = pictures.Scene.blank((200, 100), (255, 255, 255))
    rng = random.Random(0)
    assert draw(pictures.add_text, blank, rng, kind, text, "black", 32.0)
    (thing,) = blank.things
    rows, columns = np.nonzero(np.asarray(blank.image.convert("L")) < 128)
    left, top, right, bottom = thing.box
    assert left - 1 <= columns.min()
    assert columns.max() <= right + 1
    assert top - 1 <= rows.min()
    assert rows.max() <= bottom + 1
    assert "".join(glyph.char for glyph in thing.glyphs) == thing.text == text
    assert all(one.box[2] == other.box[0] for one, other in zip(thing.glyphs, thing.glyphs[1:], strict=False))


def test_a_long_text_is_made_to_fit_and_a_full_canvas_takes_no_more():
    blank = pictures.Scene.blank((90, 60), (255, 255, 255))
    rng = random.Random(0)
    assert draw(pictures.add_text, blank, rng, "word", "mountains", "black", 50.0)
    assert blank.things[0].box[2] <= 90
    assert not pictures.add_shape(blank, rng, "square", "red", (1.0, 1.0))


def test_texts_of_a_scene_have_different_colours():
    for seed in range(5):
        texts = [("number", "12", 24.0), ("word", "sun", 24.0), ("word", "moon", 24.0)]
        drawn = draw(pictures.draw_scene, random.Random(seed), (300, 300), texts, 0)
        colours = [thing.colour for thing in drawn.texts]
        assert len(colours) == len(set(colours))
