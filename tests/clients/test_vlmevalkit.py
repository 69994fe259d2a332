"""VLMEvalKit's class `InternVLChat` (PyPI: ms-vlmeval), unchanged, on the embedded checkpoint."""

import functools

import pytest
import torch


QUESTION = "What colour is the circle?"
OPTIONS = {"do_sample": False, "max_new_tokens": 20, "top_p": None}


@pytest.fixture
def internvl_chat(client):
    grad = torch.is_grad_enabled()
    yield client("ms-vlmeval", "vlmeval.vlm.internvl.internvl_chat")
    torch.set_grad_enabled(grad)  # the package turns gradients off when it is imported


@pytest.fixture
def evaluated(internvl_chat, tiny_folder, cuda_is_cpu):
    def make(version):
        return internvl_chat.InternVLChat(model_path=str(tiny_folder), version=version, max_new_tokens=20)

    return make


@pytest.mark.parametrize("version", ["V1.5", "V2.0"])
def test_answers_about_a_picture(internvl_chat, evaluated, shapes_path, version):
    """The class cuts tiles of 448 pixels; its answer is that of `chat` on the very same tiles."""
    kit = evaluated(version)
    answer = kit.generate([{"type": "image", "value": shapes_path}, {"type": "text", "value": QUESTION}])
    tiles = internvl_chat.load_image(shapes_path).to(torch.bfloat16)
    assert tiles.shape[-1] == 448
    assert answer
    assert answer == kit.model.chat(kit.tokenizer, tiles, f"<image>\n{QUESTION}", OPTIONS)


@pytest.mark.parametrize("version", ["V1.5", "V2.0"])
def test_the_circle_is_red_on_tiles_of_the_checkpoint(internvl_chat, evaluated, shapes_path, version, monkeypatch):
    """The checkpoint was trained on tiles of 224 pixels: with these the class names the colour."""
    small = functools.partial(internvl_chat.load_image, input_size=224)
    monkeypatch.setattr(internvl_chat, "load_image", small)
    message = [{"type": "image", "value": shapes_path}, {"type": "text", "value": QUESTION}]
    assert "red" in evaluated(version).generate(message).lower()


def test_two_pictures_and_several_turns(evaluated, shapes_path):
    kit = evaluated("V2.0")
    picture = {"type": "image", "value": shapes_path}
    assert kit.generate([picture, picture, {"type": "text", "value": "What colours do Image1 and Image2 have?"}])
    turns = [
        {"role": "user", "content": [dict(picture), {"type": "text", "value": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "value": "Red."}]},
        {"role": "user", "content": [dict(picture), {"type": "text", "value": "And the star?"}]},
    ]
    kit.set_max_num(None)
    assert kit.chat_inner(turns)


def test_clip_image_processor_reads_the_folder(evaluated, internvl_chat, tiny_folder, shapes):
    """What the class uses for V1.2 checkpoints: the size comes from preprocessor_config.json."""
    pixels = internvl_chat.CLIPImageProcessor.from_pretrained(tiny_folder)(images=shapes, return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 3, 224, 224)
