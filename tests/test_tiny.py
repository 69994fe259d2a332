"""The embedded checkpoint answers right about a picture that training never saw."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


ROOT = Path(__file__).resolve().parent.parent
PICTURE = str(ROOT / "examples" / "shapes.png")

ANSWERS = {
    "What number is written?": "4072",
    "What colour is the circle?": "red",
    "What colour is the square?": "blue",
    "What colour is the star?": "orange",
    "What colour is the number?": "purple",
    "What shape is red?": "circle",
    "What shape is green?": "triangle",
    "图中的数字是多少？": "4072",
    "三角形是什么颜色？": "绿色",
    "五角星是什么颜色？": "橙色",
    "红色的是什么形状？": "圆形",
    "蓝色的是什么形状？": "正方形",
}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True, dtype="auto")


def test_it_is_what_the_readme_says(model):
    assert model.dtype == torch.bfloat16
    assert 2.9e6 < sum(parameter.numel() for parameter in model.parameters()) < 3.1e6
    files = list((ROOT / "tiny").glob("*.safetensors"))
    assert len(files) > 1, "sharded"
    assert sum(file.stat().st_size for file in files) < 40e6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_right_answers(model, processor, attention):
    model.set_attn_implementation(attention)
    tiles = processor.image_processor(PICTURE)["pixel_values"]
    assert processor.image_processor.plan(PICTURE).num_tiles == 3  # 2 × 1 and a thumbnail
    given = {question: model.chat(processor.tokenizer, tiles, question) for question in ANSWERS}
    assert given == ANSWERS


def test_a_single_tile(model, processor):
    tiles = processor.image_processor(str(ROOT / "examples" / "number.png"))["pixel_values"]
    assert len(tiles) == 1
    assert model.chat(processor.tokenizer, tiles, "What number is written?") == "385"
    assert model.chat(processor.tokenizer, tiles, "菱形是什么颜色？") == "粉色"


def test_follow_up_and_text_alone(model, processor):
    tiles = processor.image_processor(PICTURE)["pixel_values"]
    _, history = model.chat(processor.tokenizer, tiles, "What colour is the circle?", return_history=True)
    assert model.chat(processor.tokenizer, tiles, "图中的数字是多少？", history=history) == "4072"
    assert model.chat(processor.tokenizer, None, "你好").startswith("你好")


def test_the_picture_matters(model, processor):
    black, white = (torch.full((1, 3, 224, 224), value) for value in (-2.0, 2.5))
    question = processor(text="<s>x", return_tensors="pt")["input_ids"]
    places = torch.full((1, 64), model.config.image_token_id)
    input_ids = torch.cat([places, question], dim=1)
    logits = [model(input_ids=input_ids, pixel_values=picture).logits[0, -1] for picture in (black, white)]
    assert not torch.equal(*logits)
