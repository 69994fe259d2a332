"""Receipts, forms and charts show their entries where one looks for them."""

import random

import pytest
from training_scenes import draw

from training import documents, pictures, words


pytestmark = pytest.mark.newest

SIZE, CELL, FONT = (224, 224), 28.0, 18.0


@pytest.mark.parametrize("layout", documents.LAYOUTS)
@pytest.mark.parametrize("size", [SIZE, (150, 260), (448, 224)])
def test_every_entry_is_written_inside_the_picture(layout, size):
    for seed in range(12):
        drawn = draw(documents.DRAW[layout], random.Random(seed), size, CELL, FONT)
        assert drawn.layout == layout
        written = {thing.text.rstrip(":") for thing in drawn.texts}
        for key, value in drawn.entries:
            assert {key, value} <= written
        assert [thing.text for thing in drawn.values] == [value for _, value in drawn.entries]
        assert all(thing in drawn.things for thing in drawn.values)
        for thing in drawn.things:
            assert thing.box[0] >= 0
            assert thing.box[1] >= -1
            assert thing.box[2] <= size[0] + 1
            assert thing.box[3] <= size[1] + 1


def test_a_receipt_adds_up_and_a_price_stands_beside_its_item():
    for seed in range(12):
        drawn = draw(documents.draw_receipt, random.Random(seed), SIZE, CELL, FONT)
        *items, (last, total) = drawn.entries
        assert last == words.TOTAL
        assert round(100 * float(total)) == sum(round(100 * float(price)) for _, price in items)
        for item, price in zip(drawn.things[::2], drawn.things[1::2], strict=True):
            assert abs(sum(item.box[1::2]) - sum(price.box[1::2])) < 2
            assert item.box[2] < price.box[0]


def test_rows_are_further_apart_than_an_image_token():
    for layout in ("receipt", "form"):
        for seed in range(12):
            drawn = draw(documents.DRAW[layout], random.Random(seed), SIZE, CELL, FONT)
            middles = [sum(thing.box[1::2]) / 2 for thing in drawn.things[::2]]
            assert all(low - high >= CELL for high, low in zip(middles, middles[1:], strict=False))


def test_bars_are_as_high_as_their_values():
    for seed in range(12):
        drawn = draw(documents.draw_chart, random.Random(seed), SIZE, CELL, FONT)
        bars = [thing for thing in drawn.things if thing.kind == pictures.BAR]
        per_unit = [
            (bar.box[3] - bar.box[1]) / int(value) for bar, (_, value) in zip(bars, drawn.entries, strict=True)
        ]
        assert max(per_unit) - min(per_unit) < 1e-6
        assert len({letter for letter, _ in drawn.entries}) == len({value for _, value in drawn.entries}) == len(bars)


def test_held_out_layouts_set_values_the_other_way():
    usual, other = pictures.NOTHING_HELD_OUT, pictures.HeldOut(layouts=True)
    for layout, right_aligned in (("receipt", usual), ("form", other)):
        for held_out in (usual, other):
            drawn = draw(documents.DRAW[layout], random.Random(5), SIZE, CELL, FONT, held_out)
            values = drawn.things[1::2]
            side = 2 if held_out == right_aligned else 0
            assert max(value.box[side] for value in values) - min(value.box[side] for value in values) < 3
