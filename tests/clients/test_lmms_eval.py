"""lmms-eval's model class `internvl2`, unchanged, on the embedded checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image


QUESTION = "What colour is the circle?"


@pytest.fixture
def internvl2(client):
    return client("lmms-eval", "lmms_eval.models.simple.internvl2")


@pytest.fixture
def evaluated(internvl2, tiny_folder, cuda_is_cpu):
    return internvl2.InternVL2(pretrained=str(tiny_folder))


@pytest.fixture
def ask(evaluated):
    """Ask as lmms-eval asks: requests whose document is found in the task's dictionary."""

    def ask(question, *pictures, **options):
        evaluated.task_dict = {"task": {"test": {0: list(pictures)}}}
        options = {"until": ["\n\n"], "max_new_tokens": 20, **options}
        arguments = (question, options, lambda document: document, 0, "task", "test")
        return evaluated.generate_until([SimpleNamespace(args=arguments)])[0]

    return ask


@torch.no_grad()
def test_answers_about_a_picture(internvl2, evaluated, ask, shapes):
    """The class cuts tiles of 448 pixels; its answer is that of `chat` on the very same tiles."""
    answer = ask(QUESTION, shapes)
    tiles = internvl2.load_image(shapes).to(torch.bfloat16)
    options = {"num_beams": 1, "max_new_tokens": 20, "do_sample": False}
    assert tiles.shape[-1] == 448
    assert answer
    assert answer == evaluated.model.chat(evaluated.tokenizer, tiles, f"<image>\n{QUESTION}", options)


@torch.no_grad()
def test_answers_about_two_pictures_and_none(ask, shapes):
    assert ask("Image-1 and Image-2: which colours?", shapes, Image.new("RGB", (60, 60), "red"))
    assert ask("Hello")


@torch.no_grad()
def test_the_circle_is_red_on_tiles_of_the_checkpoint(internvl2, ask, shapes, monkeypatch):
    """The checkpoint was trained on tiles of 224 pixels: with these the class names the colour."""
    load_image = internvl2.load_image
    monkeypatch.setattr(internvl2, "load_image", lambda picture: load_image(picture, input_size=224))
    assert "red" in ask(QUESTION, shapes).lower()
