"""The training scripts: what they draw, ask, cut, tokenize and measure is right, and a few steps run and resume."""

import copy
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import data, evaluate, pictures, questions, tiles, tokenizer, train  # noqa: E402
from training.oracle import OracleCodes, as_tensors  # noqa: E402
from training.prepare import TINY  # noqa: E402


pytestmark = pytest.mark.newest

GEOMETRY = tiles.Geometry(224, 14, 28)


@pytest.fixture(scope="module")
def config():
    """A micro model and short stages."""
    config = copy.deepcopy(data.load_config())
    for stage in config["stages"].values():
        stage.update(steps=3, tiles_per_batch=3, grids={"1x1": 1, "2x1": 1})
    return config


def scene(seed, shapes=3, digits=3, size=(224, 224)):
    try:
        return pictures.draw_scene(random.Random(seed), size, shapes, digits, 30.0)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_same_seed_draws_the_same_picture():
    first, again, other = scene("a"), scene("a"), scene("b")
    assert first.image.tobytes() == again.image.tobytes()
    assert first.things == again.things
    assert first.image.tobytes() != other.image.tobytes()


def test_missing_fonts_name_the_packages(monkeypatch):
    pictures.font_files.cache_clear()
    monkeypatch.setattr(pictures, "FONT_ROOTS", ("/nonexistent",))
    with pytest.raises(FileNotFoundError, match="fonts-dejavu-core"):
        pictures.font_files()
    pictures.font_files.cache_clear()


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
            if thing.kind != pictures.NUMBER:
                seen = np.median(pixels[owner == index], axis=0)
                assert np.abs(seen - pictures.COLOURS[thing.colour]).max() <= 18


def test_patch_and_cell_labels_say_what_is_there():
    drawn = pictures.Scene(Image.new("RGB", (448, 224), "white"), Image.new("L", (448, 224), 0))
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


@pytest.mark.parametrize(("size", "grid"), [((200, 190), (1, 1)), ((600, 300), (2, 1))])
def test_tiles_equal_the_image_processor(size, grid):
    processor = AutoImageProcessor.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)
    drawn = scene("tiles", size=size)
    cut = [tiles.cut_pixels(drawn, grid, 224)]
    if max(grid) > 1:
        cut.append(tiles.cut_pixels(drawn, (1, 1), 224))
    expected = processor(drawn.image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(data.normalise(np.concatenate(cut)), expected, atol=1e-5, rtol=0)


def test_questions_are_unambiguous_and_answered_in_their_language():
    for seed in range(20):
        drawn = scene(seed)
        for turn in questions.ask(random.Random(seed), drawn, 9, dict.fromkeys(questions.TASKS, 1.0)):
            assert turn.question.isascii() == (turn.language == "en")
            if turn.task == "number":
                assert turn.answer == drawn.numbers[0].text
            elif turn.task == "count":
                assert turn.answer == str(len(drawn.shapes))
            elif turn.task in ("colour", "shape"):
                words = {**questions.COLOUR_ZH, **questions.SHAPE_ZH} if turn.language == "zh" else {}
                pairs = [(words.get(t.kind, t.kind), words.get(t.colour, t.colour)) for t in drawn.shapes]
                index = 1 if turn.task == "colour" else 0
                about = [pair for pair in pairs if pair[1 - index] in turn.question] or pairs
                assert [pair[index] for pair in about] == [turn.answer]


def test_tokenizer_splits_digits_and_falls_back_to_bytes():
    lines = ["What colour is the circle?", "圆形是什么颜色？"] * 50
    model = tokenizer.train_tokenizer(lines, 380)
    assert model == tokenizer.train_tokenizer(lines, 380)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert pieces.encode("4821", out_type=str) == ["4", "8", "2", "1"]
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) == (0, 1, 2)
    for text in ("What colour is the circle?", "圆形 é 漢\n"):
        assert pieces.decode(pieces.encode(text)) == text
        assert pieces.unk_id() not in pieces.encode(text)


def test_prompt_ids_equal_the_tokenizer_of_the_package():
    encoder = data.PromptEncoder(TINY / "tokenizer.model", image_tokens=64)
    auto = AutoTokenizer.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)
    turns = [
        questions.Turn("colour", "en", "What colour is the circle?", "red"),
        questions.Turn("number", "zh", "数字是多少？", "42"),
    ]
    prompt = (
        f"<|im_start|>system\n{tokenizer.SYSTEM_MESSAGE}<|im_end|><|im_start|>user\n"
        f"<img>{'<IMG_CONTEXT>' * 128}</img>\nWhat colour is the circle?<|im_end|><|im_start|>assistant\nred<|im_end|>"
        "<|im_start|>user\n数字是多少？<|im_end|><|im_start|>assistant\n42<|im_end|>"
    )
    ids, answers = encoder.conversation(turns, num_tiles=2)
    assert ids == auto(prompt)["input_ids"]
    assert [auto.decode(ids[span.start : span.stop - 1]) for span in answers] == ["red", "42"]


def test_oracle_tokens_tell_cells_apart():
    drawn = scene("oracle", digits=4)
    labels = as_tensors(tiles.label_tiles(drawn, (1, 1), GEOMETRY))
    tokens = OracleCodes(192, seed=0)(labels)
    assert tokens.shape == (1, 64, 192)
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(1, 64), atol=1e-3, rtol=0)
    described = torch.cat([labels["chars"], *(labels[n][..., None] for n in ("kinds", "colours", "centres"))], dim=-1)
    for first in range(0, 64, 7):
        for second in range(64):
            same = bool((described[0, first] == described[0, second]).all())
            assert torch.allclose(tokens[0, first], tokens[0, second], atol=1e-4) == same


def test_exact_match_and_table():
    assert evaluate.exact(" Red\n", "red")
    assert not evaluate.exact("reddish", "red")
    results = [
        evaluate.Result("colour", "en", "one tile", 9, 10),
        evaluate.Result("colour", "zh", "one tile", 10, 10),
        evaluate.Result("talk", "en", "no picture", 1, 2),
    ]
    assert evaluate.table(results).splitlines() == [
        "| task | one tile, en | one tile, zh | no picture, en |",
        "|---|---|---|---|",
        "| colour | 90 | 100 |  |",
        "| talk |  |  | 50 |",
    ]


def test_evaluation_asks_every_task_equally(config):
    drawn = list(evaluate.draw_questions(config, 1, 0, lambda image: 1 + (image.width > image.height)))
    asked = [(question.turn.task, question.turn.language, question.group) for question in drawn if question.image]
    assert len(asked) == len(set(asked)) == len(questions.TASKS) * len(questions.LANGUAGES) * 2


@pytest.mark.parametrize("stage", train.STAGES)
def test_a_few_steps_run_and_resume_to_the_same_weights(stage, config, tmp_path):
    def run(folder, steps):
        trainer = train.Trainer(short | {"stages": config["stages"] | {stage: config["stages"][stage] | steps}}, stage)
        train.train(trainer, folder, {})
        return trainer.state_dict()["weights"]

    short = copy.deepcopy(config)
    whole = run(tmp_path / "whole", {})
    # A kill after two of three steps: the schedule is that of three steps all the time.
    trainer = train.Trainer(short, stage)
    trainer.start({})
    for _ in range(2):
        trainer.backward(trainer.step)
        trainer.optimizer.step(train.rate_at(trainer.step, 3, config["optimizer"]["warmup_steps"]))
        trainer.step += 1
    (tmp_path / "resumed").mkdir()
    torch.save(trainer.state_dict(), tmp_path / "resumed" / "last.pt")
    resumed = run(tmp_path / "resumed", {})
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    log = tmp_path / "whole" / "log.jsonl"
    assert not log.exists() or json.loads(log.read_text().splitlines()[-1])["step"] <= 3
