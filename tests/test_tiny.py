"""The embedded checkpoint answers right about pictures that training never saw."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText


ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

ANSWERS = {
    "shapes.png": {
        "What number is written?": "4072",
        "What colour is the circle?": "red",
        "What colour is the square?": "blue",
        "What shape is green?": "triangle",
        "图中的数字是多少？": "4072",
        "三角形是什么颜色？": "绿色",
        "图中的五角星是什么颜色？": "橙色",
        "红色的是什么形状？": "圆形",
    },
    "sign.png": {
        "What does the blue text say?": "NORTH",
        "请读出蓝色的文字。": "NORTH",
        "What does the red text say?": "北门",
        "红色的文字写的是什么？": "北门",
    },
    "receipt.png": {
        "What is the total?": "6.30",
        "总价是多少？": "6.30",
    },
}


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True, dtype="auto")


def tiles_of(processor, name):
    return processor.image_processor(str(EXAMPLES / name))["pixel_values"]


def test_it_is_what_the_readme_says(model):
    assert model.dtype == torch.bfloat16
    assert 3.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 3.2e6
    files = list((ROOT / "tiny").glob("*.safetensors"))
    assert len(files) > 1, "sharded"
    assert sum(file.stat().st_size for file in files) < 60e6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ANSWERS)
def test_right_answers(model, processor, attention, name):
    model.set_attn_implementation(attention)
    tiles = tiles_of(processor, name)
    given = {question: model.chat(processor.tokenizer, tiles, question) for question in ANSWERS[name]}
    assert given == ANSWERS[name]


def test_the_examples_have_one_tile_and_several(processor):
    counts = {name: processor.image_processor.plan(str(EXAMPLES / name)).num_tiles for name in ANSWERS}
    assert counts == {"shapes.png": 3, "sign.png": 1, "receipt.png": 1}  # 2 × 1 and a thumbnail


@pytest.fixture(scope="module")
def chat_example():
    spec = importlib.util.spec_from_file_location("chat_example", EXAMPLES / "chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_chat_asks_what_is_pinned_here(chat_example):
    for picture, questions in chat_example.EXAMPLES.items():
        assert set(questions) <= set(ANSWERS[Path(picture).name])


@pytest.mark.parametrize("questions", [[], [" "]])
def test_a_picture_without_a_question_is_an_error(chat_example, questions, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["chat.py", "a.png", *questions])
    with pytest.raises(SystemExit):
        chat_example.main()
    assert "no question about a.png" in capsys.readouterr().err


def test_follow_up_and_text_alone(model, processor):
    tiles = tiles_of(processor, "shapes.png")
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
