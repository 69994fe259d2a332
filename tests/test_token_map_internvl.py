"""Prompt position → tile, row, column → pixels, and weights back, in numbers worked out by hand."""

import numpy as np
import pytest
import torch
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.processing_internvl import InternVLProcessor
from internvl_chat.tiling_internvl import TilePlan
from internvl_chat.token_map_internvl import ImageTokenMap, TokenPlace
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from PIL import Image


# Two tiles side by side and a thumbnail, 2 x 2 tokens each, at 5..16 of the prompt; a picture of 400 x 100 pixels.
PLAN = TilePlan(columns=2, rows=1, tile_size=56, has_thumbnail=True)
WIDE = ImageTokenMap(PLAN, (400, 100), side=2, positions=tuple(range(5, 17)))
WEIGHTS = torch.tensor([100.0] * 5 + [float(weight) for weight in range(1, 13)] + [100.0] * 3)


@pytest.fixture(scope="module")
def processor(tiny_folder):
    """Tiles of 56 pixels have 2 x 2 tokens."""
    return InternVLProcessor(InternVLImageProcessor(tile_size=56), InternLM2Tokenizer.from_pretrained(tiny_folder))


@pytest.mark.parametrize(
    ("position", "place"),
    [
        (5, TokenPlace(0, False, 0, 0, (0, 0, 100, 50))),
        (7, TokenPlace(0, False, 1, 0, (0, 50, 100, 100))),
        (10, TokenPlace(1, False, 0, 1, (300, 0, 400, 50))),
        (11, TokenPlace(1, False, 1, 0, (200, 50, 300, 100))),
        (13, TokenPlace(2, True, 0, 0, (0, 0, 200, 50))),
        (16, TokenPlace(2, True, 1, 1, (200, 50, 400, 100))),
    ],
)
def test_places(position, place):
    assert WIDE.place(position) == place


def test_places_below_each_other():
    """3 x 2 tiles of 2 x 2 tokens without a thumbnail: the sixth tile is at the right bottom."""
    token_map = ImageTokenMap(TilePlan(3, 2, 56, False), (600, 80), side=2, positions=tuple(range(24)))
    assert token_map.place(15) == TokenPlace(3, False, 1, 1, (100, 60, 200, 80))
    assert token_map.place(20) == TokenPlace(5, False, 0, 0, (400, 40, 500, 60))


def test_one_tile_is_no_thumbnail():
    token_map = ImageTokenMap(TilePlan(1, 1, 56, False), (30, 60), side=2, positions=(3, 4, 5, 6))
    assert token_map.place(6) == TokenPlace(0, False, 1, 1, (15, 30, 30, 60))
    assert token_map.heat_map(torch.arange(8.0)).tolist() == [[3, 4], [5, 6]]


def test_transposed_tokens_go_column_by_column():
    token_map = ImageTokenMap(PLAN, (400, 100), side=2, positions=tuple(range(5, 17)), transposed=True)
    assert token_map.place(6) == TokenPlace(0, False, 1, 0, (0, 50, 100, 100))
    assert token_map.tile_maps(WEIGHTS)[0].tolist() == [[1, 3], [2, 4]]


def test_weights_of_tiles():
    assert WIDE.tile_maps(WEIGHTS).tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]]


def test_heat_map():
    """A thumbnail token covers two cells of the grid, and gives half of its weight to each."""
    heat = WIDE.heat_map(WEIGHTS)
    assert torch.equal(heat, WIDE.heat_map(WEIGHTS.numpy()))
    assert heat.tolist() == [[5.5, 6.5, 10, 11], [8.5, 9.5, 13, 14]]
    assert heat.sum() == sum(range(1, 13))


def test_heat_map_of_many_rows():
    weights = torch.rand(4, 3, 20, dtype=torch.float64)  # layers, heads
    token_map = ImageTokenMap(TilePlan(1, 2, 56, True), (50, 90), side=2, positions=tuple(range(2, 14)))
    heat = token_map.heat_map(weights)
    assert heat.shape == (4, 3, 4, 2)
    torch.testing.assert_close(heat.sum((-1, -2)), weights[..., 2:14].sum(-1))
    assert torch.equal(heat[1, 2], token_map.heat_map(weights[1, 2]))


def test_heat_lies_where_the_token_is():
    """All weight on one token: the cells that are lit cover the very pixels of its place."""
    token_map = ImageTokenMap(TilePlan(3, 2, 56, True), (600, 80), side=2, positions=tuple(range(28)))
    for position in range(28):
        heat = token_map.heat_map(torch.eye(28)[position])
        rows, columns = heat.nonzero(as_tuple=True)
        box = (columns.min() * 100, rows.min() * 20, (columns.max() + 1) * 100, (rows.max() + 1) * 20)
        assert tuple(map(int, box)) == token_map.place(position).box


@pytest.mark.parametrize("max_tiles", [1, 4, 6])
def test_tokens_show_the_pixels_of_their_place(processor, max_tiles):
    """What is painted into a place's box appears in that token's cell of that tile, and there alone."""
    size = (330, 210)
    plan = processor.image_processor.plan(size, max_tiles=max_tiles)
    count = plan.num_tiles * 4
    (token_map,) = processor.map_image_tokens(size, [processor.image_token_id] * count, max_tiles=max_tiles)
    for position in range(count):
        place = token_map.place(position)
        picture = Image.new("RGB", size)
        picture.paste("white", tuple(map(round, place.box)))
        tiles = processor.image_processor(picture, max_tiles=max_tiles)["pixel_values"]
        cells = tiles[place.tile].mean(0).unflatten(0, (2, 28)).unflatten(2, (2, 28)).mean((1, 3))  # (row, column)
        cell = place.row, place.column
        assert cells[cell] > 2.0, "nearly white"
        cells[cell] = -3
        assert cells.max() < -1.5, "nearly black"


def test_prompts_with_several_pictures(processor):
    pictures = [Image.new("RGB", (400, 100)), Image.new("RGB", (60, 60)), Image.new("RGB", (100, 200))]
    text = "a <image> b <image> c <image> d"
    inputs = processor(images=pictures, text=text, return_tensors="pt", max_tiles=4)
    given = inputs["input_ids"]
    sizes = [picture.size for picture in pictures]
    maps = processor.map_image_tokens(pictures, given, max_tiles=4)
    assert maps == processor.map_image_tokens(sizes, given[0].tolist(), max_tiles=4)
    assert [(one.plan.columns, one.plan.rows) for one in maps] == [(4, 1), (1, 1), (1, 2)]
    positions = [position for one in maps for position in one.positions]
    assert positions == (given[0] == processor.image_token_id).nonzero().flatten().tolist()
    with pytest.raises(ValueError, match=r"Position 0 is no token of this image, which has 4 of them from"):
        maps[1].place(0)
    with pytest.raises(ValueError, match=r"prompt have \[20, 4, 12\] image tokens, but the given ones \[4, 20, 12\]"):
        processor.map_image_tokens([sizes[1], sizes[0], sizes[2]], given, max_tiles=4)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), given], dim=1)
    moved = processor.map_image_tokens(pictures, padded, max_tiles=4)
    assert moved[2].positions == tuple(position + 3 for position in maps[2].positions)
    assert not any(one.transposed for one in maps)
    assert processor.map_image_tokens(pictures, given, ps_version="v1", max_tiles=4)[0].transposed


def test_a_turned_photograph(processor):
    photograph = Image.new("RGB", (100, 50))
    photograph.getexif()[0x0112] = 6
    ids = [processor.image_token_id] * 12
    assert processor.map_image_tokens(photograph, ids, max_tiles=2)[0].image_size == (50, 100)
    assert processor.map_image_tokens(photograph, ids, max_tiles=2, apply_exif_orientation=False)[0].image_size == (
        100,
        50,
    )


def test_what_does_not_fit(processor):
    ids = np.full(12, processor.image_token_id)
    with pytest.raises(
        ValueError, match=r"the prompt have \[12\] image tokens, but the given ones \[12, 4\]: give all"
    ):
        processor.map_image_tokens([(100, 50), (50, 50)], ids, max_tiles=2)
    with pytest.raises(ValueError, match=r"input_ids is \(2, 12\), expected one prompt \(seq,\): map row by row"):
        processor.map_image_tokens((100, 50), np.stack([ids, ids]))
    with pytest.raises(ValueError, match=r"The image size is \(100.0, 50.0\), expected"):
        processor.map_image_tokens((100.0, 50.0), ids)
    with pytest.raises(ValueError, match="input_ids is of type NoneType, expected the ids of one prompt"):
        processor.map_image_tokens((100, 50), None)
    with pytest.raises(ValueError, match="ps_version is 'v3', expected 'v1' or 'v2'"):
        processor.map_image_tokens((100, 50), ids, ps_version="v3")
    with pytest.raises(ValueError, match=r"The weights are \(16,\), expected \(..., seq\) with one for each token"):
        WIDE.heat_map(WEIGHTS[:16])
    with pytest.raises(ValueError, match="pad2square is set"):
        processor.map_image_tokens((100, 50), ids, max_tiles=1, pad2square=True)
    with pytest.raises(
        ValueError, match="There are 3 positions for an image of 3 tiles with 2 x 2 tokens, expected 12"
    ):
        ImageTokenMap(PLAN, (400, 100), side=2, positions=(1, 2, 3))
