"""Every form of call on the official model card, on the embedded checkpoint; the wording of the code is ours."""

import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, TextIteratorStreamer
from transformers.models.auto.image_processing_auto import AutoImageProcessor


ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(
        ROOT,
        subfolder="tiny",
        dtype=torch.bfloat16,
        low_cpu_mem_usage=True,
        use_flash_attn=True,
        trust_remote_code=True,
    ).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True, use_fast=False)


@pytest.fixture(scope="module")
def load_image():
    image_processor = AutoImageProcessor.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)
    return lambda name, max_num=12: image_processor(str(EXAMPLES / name), max_num=max_num)["pixel_values"].bfloat16()


@pytest.fixture
def generation_config():
    return {"max_new_tokens": 64, "do_sample": False}


def test_text_in_turns(model, tokenizer, generation_config):
    response, history = model.chat(
        tokenizer, None, "Hello, who are you?", generation_config, history=None, return_history=True
    )
    assert history == [("Hello, who are you?", response)]
    _, history = model.chat(
        tokenizer, None, "Can you tell me a story?", generation_config, history=history, return_history=True
    )
    assert [question for question, _ in history] == ["Hello, who are you?", "Can you tell me a story?"]


def test_one_image_in_turns(model, tokenizer, load_image, generation_config):
    pixel_values = load_image("shapes.png")
    question = "<image>\nWhat colour is the circle?"
    assert model.chat(tokenizer, pixel_values, question, generation_config) == "red"
    response, history = model.chat(
        tokenizer, pixel_values, question, generation_config, history=None, return_history=True
    )
    response, history = model.chat(
        tokenizer, pixel_values, "What number is written?", generation_config, history=history, return_history=True
    )
    assert (response, len(history)) == ("4072", 2)


@pytest.mark.parametrize("question", ["<image>\nDescribe.", "Image-1: <image>\nImage-2: <image>\nDescribe."])
def test_several_images(model, tokenizer, load_image, generation_config, question):
    """As one picture of many tiles, or each by itself with `num_patches_list`."""
    parts = [load_image("shapes.png"), load_image("sign.png")]
    counts = {"num_patches_list": [len(part) for part in parts]} if "Image-2" in question else {}
    response, history = model.chat(
        tokenizer, torch.cat(parts), question, generation_config, history=None, return_history=True, **counts
    )
    assert history == [(question, response)]
    assert response


def test_a_batch(model, tokenizer, load_image, generation_config):
    parts = [load_image("shapes.png"), load_image("receipt.png")]
    counts = [len(part) for part in parts]
    questions = ["<image>\nWhat colour is the circle?", "<image>\nWhat is the total?"]
    responses = model.batch_chat(
        tokenizer,
        torch.cat(parts),
        num_patches_list=counts,
        questions=questions,
        generation_config=generation_config,
    )
    assert responses == ["red", "6.30"]


def test_a_video(model, tokenizer, load_image, generation_config):
    """Frames are images of one tile, named in the question."""
    frames = [load_image(name, max_num=1) for name in ("shapes.png", "shapes.png", "sign.png")]
    prefix = "".join(f"Frame{number}: <image>\n" for number in range(1, len(frames) + 1))
    response, history = model.chat(
        tokenizer,
        torch.cat(frames),
        prefix + "What colour is the circle?",
        generation_config,
        num_patches_list=[len(frame) for frame in frames],
        history=None,
        return_history=True,
    )
    assert history[0][1] == response != ""


def test_streaming_with_the_streamer_among_the_options(model, tokenizer, load_image):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    arguments = {
        "tokenizer": tokenizer,
        "pixel_values": load_image("shapes.png"),
        "question": "What colour is the circle?",
        "history": None,
        "return_history": False,
        "generation_config": {"max_new_tokens": 64, "do_sample": False, "streamer": streamer},
    }
    thread = threading.Thread(target=model.chat, kwargs=arguments)
    thread.start()
    text = ""
    for piece in streamer:
        if piece == model.conv_template.sep:
            break
        text += piece
    thread.join()
    assert text.removesuffix(model.conv_template.sep).strip() == "red"


def test_a_map_of_devices_by_hand(tokenizer, load_image, generation_config):
    """The card's map names every part, and puts the ends of the language model beside the vision encoder."""
    config = AutoModel.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True).config
    places = dict.fromkeys(
        (
            "vision_model",
            "mlp1",
            "language_model.model.tok_embeddings",
            "language_model.model.embed_tokens",
            "language_model.model.rotary_emb",
            "language_model.model.norm",
            "language_model.output",
            "language_model.lm_head",
            *(f"language_model.model.layers.{layer}" for layer in range(config.llm_config.num_hidden_layers)),
        ),
        "cpu",
    )
    model = AutoModel.from_pretrained(
        ROOT,
        subfolder="tiny",
        dtype=torch.bfloat16,
        low_cpu_mem_usage=True,
        use_flash_attn=True,
        trust_remote_code=True,
        device_map=places,
    ).eval()
    answer = model.chat(tokenizer, load_image("shapes.png"), "What colour is the circle?", generation_config)
    assert answer == "red"
