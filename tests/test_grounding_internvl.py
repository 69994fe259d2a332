"""Boxes: text to pixels of the original picture, back, and drawn; nothing malformed is dropped in silence."""

import numpy as np
import pytest
import torch
from internvl_chat.grounding_internvl import COLOURS, Region, format_grounding, parse_grounding
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.processing_internvl import InternVLProcessor
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from PIL import Image, ImageFont


SIZE = (640, 200)  # width, height
TURNED = "has its right left of its left, or its bottom above its top"
# A box at known pixels of pictures of very different proportions.
KNOWN = [
    ((640, 200), (17, 31, 233, 187)),
    ((333, 1777), (1, 1000.5, 332, 1776)),
    ((3840, 2160), (0, 0, 3840, 2160)),
    ((97, 89), (50, 40, 50, 40)),
]


@pytest.fixture(scope="module")
def processor(tiny_folder):
    tokenizer = InternLM2Tokenizer.from_pretrained(tiny_folder)
    return InternVLProcessor(InternVLImageProcessor(tile_size=224), tokenizer)


def test_labels_and_pixels():
    answer = (
        "See <ref>红色的圆</ref><box>[[0,500,250,1000]]</box> and <ref>two cats</ref> "
        "<box>[[100, 0, 200, 10],[1,2,3,4]]</box>."
    )
    grounding = parse_grounding(answer, SIZE)
    assert grounding.regions == [
        Region("红色的圆", (0.0, 100.0, 160.0, 200.0)),
        Region("two cats", (64.0, 0.0, 128.0, 2.0)),
        Region("two cats", (0.64, 0.4, 1.92, 0.8)),
    ]
    assert grounding.text == "See 红色的圆 and two cats ."
    assert grounding.problems == []


def test_chinese_commas():
    grounding = parse_grounding("<ref>圆</ref>：<box>[[100，0，200、10]，[1,2,3,4]]</box>", (1000, 1000))
    assert [region.box for region in grounding.regions] == [(100, 0, 200, 10), (1, 2, 3, 4)]
    assert grounding.problems == []


def test_boxes_without_a_label():
    regions = parse_grounding("<box>[[0,0,1000,1000]]</box><box>[0,0,500.5,1]</box>", SIZE).regions
    assert regions == [Region(None, (0, 0, 640, 200)), Region(None, (0, 0, 320.32, 0.2))]


def test_a_label_holds_only_for_what_follows_directly():
    grounding = parse_grounding(
        "<ref>cat</ref>: <box>[[0,0,1,1]]</box>, <box>[[0,0,2,2]]</box> and <box>[[0,0,3,3]]</box>", (1000, 1000)
    )
    assert [region.label for region in grounding.regions] == ["cat", "cat", None]
    assert grounding.problems == []


def test_quads():
    (region,) = parse_grounding("<ref>sign</ref><quad>[[500,0,1000,100,600,900,0,800]]</quad>", SIZE).regions
    assert region == Region("sign", (0, 0, 640, 180), ((320, 0), (640, 20), (384, 180), (0, 160)))


@pytest.mark.parametrize(
    ("answer", "problems", "num_regions"),
    [
        ("<box>[[1,2,3]]</box>", ["<box> [1,2,3] has 3 numbers, expected 4."], 0),
        ("<quad>[[1,2,3,4]]</quad>", ["<quad> [1,2,3,4] has 4 numbers, expected 8."], 0),
        ("<box>[[1,2,3,1001]]</box>", ["<box> [1,2,3,1001] goes beyond 1000."], 0),
        ("<box>[[1,2,-3,4]]</box>", ["<box> [1,2,-3,4] holds something else than numbers."], 0),
        ("<box>[[1,2,nan,4]]</box>", ["<box> [1,2,nan,4] holds something else than numbers."], 0),
        (
            "<box>[[5,2,3,4]]</box>",
            ["<box> [5,2,3,4] has its right left of its left, or its bottom above its top."],
            0,
        ),
        ("<box></box>", ["<box> '' is not a list such as [[x1,y1,x2,y2]]."], 0),
        ("<box>(1,2),(3,4)</box>", ["<box> '(1,2),(3,4)' is not a list such as [[x1,y1,x2,y2]]."], 0),
        # An answer cut off at max_new_tokens, in the middle of its second box
        (
            "<ref>cat</ref><box>[[1,2,3,4],[5,6",
            [
                "<box> '[[1,2,3,4],[5,6' does not end with </box>.",
                "<box> '[[1,2,3,4],[5,6' is not a list such as [[x1,y1,x2,y2]].",
            ],
            1,
        ),
        ("<box>[[1,2,3,4]]<box>[[1,2,3,4]]</box>", ["<box> '[[1,2,3,4]]' does not end with </box>."], 2),
        ("[[1,2,3,4]]</box>", ["'[[1,2,3,4]]' looks like a box without its tags.", "</box> ends nothing."], 0),
        ("cat[[1,2,3,4],[5,6,7,8]]", ["'[[1,2,3,4],[5,6,7,8]]' looks like a box without its tags."], 0),
        ("圆[[1，2，3，4]]", ["'[[1，2，3，4]]' looks like a box without its tags."], 0),
        ("<ref>cat</ref> sits on <box>[[1,2,3,4]]</box>", ["<ref> 'cat' has no box."], 1),
        ("a <ref>cat</ref>", ["<ref> 'cat' has no box."], 0),
        (
            "<ref>a<ref>b</ref><box>[[1,2,3,4]]</box>",
            ["<ref> 'a' does not end with </ref>.", "<ref> 'a' has no box."],
            1,
        ),
        ("<box>[[1,2,3],[1,2,3,4]]</box>", ["<box> [1,2,3] has 3 numbers, expected 4."], 1),
    ],
)
def test_malformed_answers_are_reported(answer, problems, num_regions):
    grounding = parse_grounding(answer, SIZE)
    assert grounding.problems == problems
    assert len(grounding.regions) == num_regions


@pytest.mark.parametrize("answer", ["", "A cat.", "a[1] = [[]]", "1 < 2 <b>bold</b>"])
def test_answers_without_boxes(answer):
    grounding = parse_grounding(answer, SIZE)
    assert (grounding.text, grounding.regions, grounding.problems) == (answer, [], [])


@pytest.mark.parametrize(("size", "box"), KNOWN)
def test_a_known_box_survives_text_within_one_step(size, box):
    text = format_grounding(box, size, "it")
    (region,) = parse_grounding(text, size).regions
    assert region.label == "it"
    for index, (found, edge) in enumerate(zip(region.box, box, strict=True)):
        assert abs(found - edge) <= size[index % 2] / 1000
    # The pixels of a text give that very text again.
    assert format_grounding(region.box, size, "it") == text


def test_every_step_of_every_size_is_stable():
    for side in (1, 7, 97, 333, 448, 999, 1000, 1001, 3840):
        for step in range(1001):
            text = f"<box>[[{step},{step},{step},{step}]]</box>"
            (region,) = parse_grounding(text, (side, 2 * side)).regions
            assert format_grounding(region.box, (side, 2 * side)) == text


@pytest.mark.parametrize(
    ("size", "box", "expected_grids"),
    [
        ((640, 200), (17, 31, 233, 187), {(1, 1), (3, 1), (4, 1), (6, 2)}),
        ((333, 777), (101, 5, 332, 600), {(1, 1), (1, 4), (2, 5), (2, 6)}),
    ],
)
def test_a_drawn_box_survives_text_with_any_tile_plan(processor, size, box, expected_grids):
    """The pixels that a text means are those where the tiles show the box, whatever the grid."""
    picture = Image.new("RGB", size, "black")
    picture.paste("white", box)
    grids = set()
    for min_tiles, max_tiles in ((1, 1), (1, 12), (4, 4), (12, 12)):
        image_processor = InternVLImageProcessor(tile_size=224, min_tiles=min_tiles, max_tiles=max_tiles)
        processor = InternVLProcessor(image_processor, processor.tokenizer)
        (grounding,) = processor.post_process_grounding(processor.grounding_text(box, picture), picture)
        (region,) = grounding.regions
        steps = [abs(found - edge) * 1000 / side for found, edge, side in zip(region.box, box, size * 2, strict=True)]
        assert max(steps) <= 1
        plan = processor.image_processor.plan(picture)
        grids.add((plan.columns, plan.rows))
        tiles = processor.image_processor(picture)["pixel_values"][: plan.columns * plan.rows]
        canvas = tiles.unflatten(0, (plan.rows, plan.columns)).mean(2).permute(0, 2, 1, 3)
        lit = canvas.reshape(plan.rows * 224, plan.columns * 224) > 0
        seen = []
        for axis, length in ((0, size[0]), (1, size[1])):
            (inside,) = lit.any(dim=axis).nonzero(as_tuple=True)
            cell = length / lit.shape[1 - axis]  # original pixels of one pixel of the canvas
            seen.append((int(inside[0]) * cell, (int(inside[-1]) + 1) * cell, cell))
        for (low, high, cell), edges in zip(seen, (box[::2], box[1::2]), strict=True):
            assert abs(low - edges[0]) <= cell
            assert abs(high - edges[1]) <= cell
    assert grids == expected_grids


@pytest.mark.newest
def test_training_writes_boxes_alike():
    """The embedded checkpoint's training rounds to a coarse grid; the form and the scale are the same."""
    from training.questions import box_text  # noqa: PLC0415 (training is not for every release)

    size, box = (640, 200), (160, 50, 480, 150)
    assert box_text(box, size) == format_grounding(box, size)


def test_several_boxes_quads_and_every_kind_of_list():
    boxes = [(0, 0, 64, 20), (64, 20, 640, 200)]
    text = "<ref>a</ref><box>[[0,0,100,100],[100,100,1000,1000]]</box>"
    for given in (boxes, tuple(boxes), [list(box) for box in boxes], np.array(boxes), torch.tensor(boxes)):
        assert format_grounding(given, SIZE, "a") == text
    for one in (boxes[0], list(boxes[0]), torch.tensor(boxes[0])):
        assert format_grounding(one, SIZE) == "<box>[[0,0,100,100]]</box>"
    quad = ((0, 0), (64, 0), (64, 20), (0, 20))
    assert format_grounding(quad, SIZE) == "<quad>[[0,0,100,0,100,100,0,100]]</quad>"
    assert format_grounding([quad, quad], SIZE).count("[0,0,100") == 2
    assert parse_grounding(format_grounding(quad, SIZE), SIZE).regions[0].corners == quad


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 641, 10), r"expected corners \(x, y\) in pixels.*picture of 640 x 200 \(width x height\): clip it"),
        ((-1, 0, 5, 10), "clip it"),
        ((10, 0, 5, 10), "the left top one first"),
        ((float("nan"), 0, 5, 10), "clip it"),
        ((1, 2, 3), r"expected \(left, top, right, bottom\) or four corners"),
        (None, "The boxes are None, expected"),
        ("1,2,3,4", "The boxes are 1,2,3,4, expected"),
        (("1", "2", "3", "4"), "in numbers"),
        ([(1, 2, 3, 4), 5], "expected"),
        ([(1, 2, 3, 4), []], "expected"),
        ([[[1, 2, 3, 4]]], "expected"),
        ([], "expected"),
        (((1, 2), (3, 4), (5, 6)), "expected"),
    ],
)
def test_boxes_that_are_none(box, message):
    with pytest.raises(ValueError, match=message):
        format_grounding(box, SIZE)


def test_wrong_sizes_and_labels():
    for size in ((0, 5), (640.0, 200.0), (640,), (640, 200, 3)):
        for call in (lambda size: parse_grounding("", size), lambda size: format_grounding((0, 0, 1, 1), size)):
            with pytest.raises(ValueError, match=r"image size is \(.*\), expected \(width, height\) in pixels"):
                call(size)
    for label in ("", " ", 5):
        with pytest.raises(ValueError, match=r"The label is .*, expected text, or None for a box without one"):
            format_grounding((0, 0, 1, 1), SIZE, label)
    with pytest.raises(ValueError, match="holds a tag; give plain text"):
        format_grounding((0, 0, 1, 1), SIZE, "a</ref>")


def test_processor_takes_ids_and_texts_sizes_and_pictures(processor):
    answer = "<ref>red circle</ref><box>[[0,0,500,500]]</box>"
    token_ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
    expected = [Region("red circle", (0, 0, 320, 100))]
    rows = torch.tensor([token_ids, token_ids])
    for answers in (answer, [answer], token_ids, rows[0], rows[:1]):
        (grounding,) = processor.post_process_grounding(answers, SIZE)
        assert grounding.regions == expected
    one, two = processor.post_process_grounding(rows, [SIZE, Image.new("RGB", (10, 10))])
    assert (one.regions[0].box, two.regions[0].box) == ((0, 0, 320, 100), (0, 0, 5, 5))
    (as_list,) = processor.post_process_grounding(answer, list(SIZE))
    assert as_list.regions == expected
    with pytest.raises(ValueError, match="3 image sizes for 2 answers"):
        processor.post_process_grounding(rows, [SIZE] * 3)
    for wrong in (None, [answer, None]):
        with pytest.raises(ValueError, match="The token ids are"):
            processor.post_process_grounding(wrong, SIZE)


def turned(width, height, orientation=6):
    """Return a black photograph with a red bottom right corner whose EXIF data turn it, by a quarter if not told."""
    picture = Image.new("RGB", (width, height))
    picture.putpixel((width - 1, height - 1), (255, 0, 0))
    picture.getexif()[0x0112] = orientation
    return picture


def test_a_turned_photograph_is_upright(processor):
    photograph = turned(640, 200)
    (grounding,) = processor.post_process_grounding("<box>[[0,0,1000,500]]</box>", photograph)
    assert grounding.regions[0].box == (0, 0, 200, 320)
    assert grounding.draw(photograph).size == (200, 640)
    assert processor.grounding_text((0, 0, 200, 320), photograph) == "<box>[[0,0,1000,500]]</box>"


def test_a_turned_photograph_that_stays_as_it_is(processor):
    """Where the model was shown it unturned, boxes and drawing are so."""
    photograph, untold = turned(640, 200), "<box>[[0,0,1000,500]]</box>"
    unturned = InternVLProcessor(InternVLImageProcessor(apply_exif_orientation=False), processor.tokenizer)
    (of_setting,) = unturned.post_process_grounding(untold, photograph)
    (of_call,) = processor.post_process_grounding(untold, photograph, apply_exif_orientation=False)
    for grounding in (of_setting, of_call):
        assert grounding.regions[0].box == (0, 0, 640, 100)
        drawn = grounding.draw(photograph)
        assert drawn.size == (640, 200)
        assert drawn.getpixel((320, 100)) != (0, 0, 0)
    assert unturned.grounding_text((0, 0, 640, 100), photograph) == untold
    assert processor.grounding_text((0, 0, 640, 100), photograph, apply_exif_orientation=False) == untold
    upside_down = turned(640, 200, orientation=3)  # its size tells nothing
    corners = [
        one.post_process_grounding(untold, upside_down)[0].draw(upside_down).getpixel((639, 199))
        for one in (unturned, processor)
    ]
    assert corners == [(255, 0, 0), (0, 0, 0)]


def test_drawing():
    picture = Image.new("L", SIZE, 0)
    grounding = parse_grounding("<ref>a</ref><box>[[100,500,300,900]]</box><box>[[500,500,700,900]]</box>", SIZE)
    drawn = grounding.draw(picture)
    assert (picture.mode, picture.getextrema()) == ("L", (0, 0)), "the picture itself stays"
    assert drawn.mode == "RGB"
    colour = tuple(bytes.fromhex(COLOURS[0][1:]))
    pixels = np.asarray(drawn)
    for x, y in ((64, 140), (192, 140), (128, 180), (320, 140), (448, 140)):
        assert tuple(pixels[y, x]) == colour
    assert not pixels[120:160, 80:180].any(), "only the outline"
    assert (pixels[80:99, 60:80] == 255).all(axis=-1).any(), "the label stands above the box"
    with pytest.raises(ValueError, match=r"is \(10, 10\) pixels .* regions are for \(640, 200\)"):
        grounding.draw(Image.new("RGB", (10, 10)))
    with pytest.raises(TypeError, match="font is 'arial.ttf', expected a PIL font"):
        grounding.draw(picture, "arial.ttf")


def test_drawing_on_whatever_the_image_processor_reads(tmp_path):
    """What is hidden under transparency stays hidden, as it is from the model."""
    path, grounding = tmp_path / "clear.png", parse_grounding("<box>[[0,0,100,100]]</box>", SIZE)
    Image.new("RGBA", SIZE, (200, 0, 0, 0)).save(path)
    for picture in (path, str(path), Image.open(path)):
        assert grounding.draw(picture).getpixel((600, 150)) == (255, 255, 255)


def test_drawing_labels_and_quads_at_the_edges():
    answer = (
        "<ref>红色的圆</ref><box>[[0,0,10,10]]</box><ref>a long label at the right</ref><box>[[990,0,1000,10]]</box>"
        " and <quad>[[500,0,1000,100,600,900,0,800]]</quad>"
    )
    grounding = parse_grounding(answer, SIZE)
    drawn = grounding.draw(Image.new("RGB", SIZE))
    colours = {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:3]}
    assert colours <= {colour for _, colour in drawn.getcolors(2**20)}
    assert grounding.draw(Image.new("RGB", SIZE), ImageFont.load_default()).size == SIZE
