"""Figure 6 in small: the pages, and the plot of its data."""

import pytest
from training_scenes import draw

from training import figure6, words


pytestmark = pytest.mark.newest


@pytest.mark.parametrize("sizes", figure6.SIZES.values())
def test_pages_hold_a_number_and_a_held_out_word(sizes):
    for page in draw(figure6.draw_pages, 5, 0, sizes):
        assert page.image.size == figure6.PAGE
        assert sorted(thing.kind for thing in page.texts) == ["number", "word"]
        (word,) = [thing for thing in page.texts if thing.kind == "word"]
        assert word.text.lower() in words.words(held_out=True)
        assert word.box[3] - word.box[1] <= 1.3 * sizes[1]


def test_plot_has_a_curve_for_each_size_and_kind():
    curves = {name: {kind: list(range(7)) for kind in figure6.KINDS} for name in figure6.SIZES}
    content = {"max_tiles": figure6.MAX_TILES, "max_tiles_in_training": 12, "percent": curves}
    (axes,) = figure6.plot(content).axes
    assert len(axes.get_legend_handles_labels()[1]) == 4
