"""Batches are functions of their number, and their prompts are those of the package."""

import copy
import random

import pytest
import torch
from PIL import Image
from training_scenes import ROOT, draw
from transformers import AutoProcessor

from training import data, evaluate
from training import pictures as drawing
from training.prepare import TINY
from training.questions import TASKS, Turn
from training.tokenizer import SYSTEM_MESSAGE


pytestmark = pytest.mark.newest


@pytest.fixture(scope="module")
def encoder():
    return data.PromptEncoder(TINY / "tokenizer.model", image_tokens=64)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)


def batches(encoder, **settings):
    config = copy.deepcopy(data.load_config())
    config["stages"]["joint"] |= {"tiles_per_batch": 4} | settings
    return data.Batches(config, "joint", encoder)


def test_prompt_ids_equal_the_tokenizer_of_the_package(encoder, processor):
    turns = [Turn("colour", "en", "What colour is the circle?", "red"), Turn("number", "zh", "数字是多少？", "42")]
    prompt = (
        f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|><|im_start|>user\n"
        f"<img>{'<IMG_CONTEXT>' * 128}</img>\nWhat colour is the circle?<|im_end|><|im_start|>assistant\nred<|im_end|>"
        "<|im_start|>user\n数字是多少？<|im_end|><|im_start|>assistant\n42<|im_end|>"
    )
    ids, answers, _ = encoder.conversation(turns, num_tiles=[2])
    assert ids == processor.tokenizer(prompt)["input_ids"]
    assert [processor.tokenizer.decode(ids[span.start : span.stop - 1]) for span in answers] == ["red", "42"]


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_prompt_ids_equal_the_chat_template(encoder, processor, pictures):
    turn = Turn("box", "en", "Give the box of <ref>red star</ref>", "<ref>red star</ref><box>[[0,31,62,1000]]</box>")
    images = tuple(Image.new("RGB", (224, 224)) for _ in range(pictures))
    expected = processor.apply_chat_template(
        [evaluate.Question("", images, turn).message], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids, (answer,), _ = encoder.conversation([turn], num_tiles=[1] * pictures)
    assert ids[: answer.start] == list(expected[0])
    assert encoder.pieces.unk_id() not in ids
    assert ids[answer.start] == encoder.special["<ref>"]
    assert processor.post_process_image_text_to_text([ids[answer.start : answer.stop]]) == [turn.answer]


def test_what_is_read_is_spelled(encoder):
    ids, (answer,), _ = encoder.conversation([Turn("line", "en", "Read the text.", "red star")], [])
    assert [encoder.pieces.id_to_piece(i) for i in ids[answer.start : answer.stop - 1]] == list("red▁star")


def test_the_number_decides_the_batch(encoder):
    source = batches(encoder)
    first, again, other = (draw(source.batch, number, True) for number in (3, 3, 4))
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.pixel_values, again.pixel_values)
    assert first.input_ids.shape != other.input_ids.shape or not torch.equal(first.input_ids, other.input_ids)


@pytest.mark.parametrize(("grid", "pictures", "tiles"), [("none", 0, 0), ("1x1", 1, 1), ("2x1", 1, 3), ("pair", 2, 2)])
def test_image_tokens_match_the_tiles(encoder, grid, pictures, tiles):
    batch = draw(batches(encoder, grids={grid: 1}).batch, 0, True)
    assert (batch.input_ids == encoder.image_token_id).sum(-1).tolist() == [64 * tiles] * batch.size
    assert (batch.pixel_values is None) == (pictures == 0)
    if pictures:
        assert len(batch.pixel_values) == len(batch.labels["kinds"]) == tiles * batch.size
    for _, row, span in batch.answers:
        assert batch.weights[row, span.start : span.stop].sum() == pytest.approx(len(span) ** 0.5)


def test_gaps_stand_before_tiles_and_after_the_last(encoder):
    batch = draw(batches(encoder, grids={"2x1": 1}, gap_share=1, longest_gap=500).batch, 0, False)
    steps = batch.position_ids.diff(dim=-1)
    assert steps.min() == 1
    assert 1 < batch.position_ids.max() - batch.input_ids.shape[1] < 500
    image = batch.input_ids == encoder.image_token_id
    for row in range(batch.size):
        (jumps,) = (steps[row] > 1).nonzero(as_tuple=True)
        first = int(image[row].nonzero()[0])
        assert {int(jump) + 1 - first for jump in jumps} <= {0, 64, 128, 192}


def test_training_never_shows_held_out_words(encoder):
    source = batches(encoder)
    rng = random.Random(0)
    words = {drawing.random_text(rng, drawing.WORD, held_out=True).lower() for _ in range(500)}
    for number in range(40):
        scene = draw(source.scene, random.Random(number), (1, 1))
        assert not words & {part.lower() for thing in scene.texts for part in thing.text.split() if len(part) > 3}


def test_every_scene_shows_something(encoder, monkeypatch):
    source, empty = batches(encoder), iter((True, True, False))
    drawn = drawing.draw_scene

    def draw_little(*args):
        scene = drawn(*args)
        if next(empty):
            scene.things.clear()
        return scene

    monkeypatch.setattr(data, "draw_scene", draw_little)
    source.pictures = source.pictures | {"layouts": {"shapes": 1}}
    assert draw(source.scene, random.Random(0), data.ONE_TILE).things
    assert next(empty, None) is None


def test_names_in_questions_are_found_among_the_tokens(encoder):
    boxes = ((0, 0, 1, 1), (2, 2, 3, 3))
    turns = [
        Turn("relation", "en", "Is the star left of the circle?", "yes", ((10, boxes[0]), (29, boxes[1]))),
        Turn("box", "zh", "请给出<ref>红色的文字</ref>的边界框。", "…", ((18, boxes[0]),)),
        Turn("form", "en", "What is the née?", "…", ((13, boxes[0]),)),
    ]
    ids, _, names = encoder.conversation(turns, num_tiles=[1])
    pieces = {token: name for name, token in encoder.special.items()}
    found = [pieces.get(ids[place]) or encoder.pieces.id_to_piece(ids[place]) for place, _ in names]
    assert found == ["▁star", "▁circle", "</ref>", "<0xA9>"]
    assert [box for _, box in names] == [boxes[0], boxes[1], boxes[0], boxes[0]]


def test_names_within_one_token_are_left_out(encoder):
    question = "圆形在五角星的左边吗？"
    assert "圆形在五角星的" in encoder.pieces.encode(question, out_type=str)
    turn = Turn("relation", "zh", question, "是", ((1, (0, 0, 1, 1)), (5, (2, 2, 3, 3))))
    assert encoder.conversation([turn], num_tiles=[1])[2] == []


def test_what_questions_name_is_told_with_its_edges(encoder):
    weights = dict.fromkeys(TASKS, 0) | {"relation": 100, "count": 1}
    source = batches(encoder, task_weights=weights, turns=[1, 1], grids={"1x1": 1}, tiles_per_batch=12)
    source.pictures = source.pictures | {"layouts": {"shapes": 1}}
    batch = draw(source.batch, 0, False)
    named = {row: (batch.named[:, 0] == row).sum().item() for _, row, _ in batch.answers}
    assert {(task, named[row]) for task, row, _ in batch.answers} == {("relation", 2), ("count", 0)}
    assert (batch.named[:, 4:] > batch.named[:, 2:4]).all()
    nothing = draw(batches(encoder, grids={"none": 1}).batch, 0, False).named
    assert (nothing.shape, nothing.dtype) == ((0, 6), torch.long)


def test_a_stage_may_draw_other_pictures(encoder):
    source = batches(encoder, pictures={"layouts": {"chart": 1}})
    assert draw(source.scene, random.Random(0), data.ONE_TILE).layout == "chart"
    assert source.pictures["font_size"] == data.load_config()["pictures"]["font_size"]
