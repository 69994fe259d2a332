"""A model in parts says what it says in one piece, wherever Transformers puts the parts.

There is one device here. Weights that do not fit in `max_memory` go to the disk, as they would beside a GPU; and a
`torch.device` in a map is a device like any other to accelerate, beside which the string "cpu" means weights that wait
in memory and visit it for each step.
"""

import re

import pytest
import torch
from transformers import AutoModelForImageTextToText


HERE = torch.device("cpu")
SMALL = {"cpu": "4MB"}  # of 6 MB of weights
PLACES = {
    "auto": {"device_map": "auto"},
    "balanced": {"device_map": "balanced"},
    "auto, small": {"device_map": "auto", "max_memory": SMALL},
    "balanced, small": {"device_map": "balanced", "max_memory": SMALL},
    "sequential, small": {"device_map": "sequential", "max_memory": SMALL},
    "vision encoder waits in memory": {"device_map": {"vision_model": "cpu", "mlp1": HERE, "language_model": HERE}},
    "layers wait in memory": {
        "device_map": {
            "vision_model.embeddings": HERE,
            **{f"vision_model.encoder.layers.{i}": place for i, place in enumerate((HERE, "cpu", "cpu", HERE))},
            "mlp1": "cpu",
            "language_model.model.tok_embeddings": "cpu",
            **{f"language_model.model.layers.{i}": place for i, place in enumerate(("cpu", HERE, "cpu", HERE))},
            "language_model.model.norm": HERE,
            "language_model.output": "cpu",
        }
    },
}
GREEDY = {"max_new_tokens": 12, "do_sample": False}
QUESTIONS = ("What colour is the circle?", "图中的数字是多少？")


@pytest.fixture(scope="module")
def whole(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(params=PLACES)
def placed(request, tiny_folder, tmp_path):
    return load(tiny_folder, **PLACES[request.param], offload_folder=str(tmp_path / "offload"))


def load(folder, **kwargs):
    return AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, **kwargs
    ).eval()


def prompt(processor):
    picture = {"type": "image", "path": "examples/shapes.png"}
    message = {"role": "user", "content": [picture, {"type": "text", "text": QUESTIONS[0]}]}
    return processor.apply_chat_template(
        [message], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def everything_it_says(model, processor):
    """Answer in each way there is, with pictures."""
    inputs, tokenizer = prompt(processor).to(model.device), processor.tokenizer
    tiles = inputs["pixel_values"]
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, **GREEDY)
    answer, history = model.chat(tokenizer, tiles, QUESTIONS[0], GREEDY, return_history=True)
    answers = [answer, model.chat(tokenizer, tiles, QUESTIONS[1], GREEDY, history=history)]
    with model.start_chat(tokenizer, tiles, GREEDY) as session:
        in_session = [session.chat(question) for question in QUESTIONS]
    return logits, tokens, answers, in_session


def test_placed_model_says_the_same(whole, placed, processor):
    logits, tokens, answers, in_session = everything_it_says(placed, processor)
    expected = everything_it_says(whole, processor)
    assert torch.equal(logits, expected[0])
    assert torch.equal(tokens, expected[1])
    assert (answers, in_session) == expected[2:]
    assert "red" in answers[0]


@pytest.mark.parametrize("name", [name for name, place in PLACES.items() if "max_memory" in place])
def test_layers_stay_whole_and_the_rest_is_offloaded(tiny_folder, tmp_path, name):
    model = load(tiny_folder, **PLACES[name], offload_folder=str(tmp_path / "offload"))
    assert set(map(str, model.hf_device_map.values())) == {"cpu", "disk"}
    for part in model.hf_device_map:
        assert not re.search(r"layers\.\d+\.", part), "a layer adds its input to its output, on one device"
    assert any(re.search(r"layers\.\d+$", part) for part in model.hf_device_map), "layers are the unit"
