"""The processor: messages and images in, model inputs out; equal to `chat`."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.processing_internvl import InternVLProcessor
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


WIDE, TALL = picture(300, 100), picture(90, 200, seed=1)


@pytest.fixture(scope="module")
def processor(hub_folder):
    return AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def model(hub_folder):
    return AutoModelForImageTextToText.from_pretrained(hub_folder, trust_remote_code=True, dtype=torch.float32)


def ask(*content, role="user"):
    return {"role": role, "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def image(value):
    return {"type": "image", "image": value}


def inputs_of(processor, messages, **kwargs):
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **kwargs
    )


def test_prompt_is_the_trained_one(processor):
    messages = [ask(image(WIDE), "What is it?"), {"role": "assistant", "content": "A cat."}, ask("Sure?")]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<s><|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
        "是一个有用无害的人工智能助手。<|im_end|><|im_start|>user\n<image>\nWhat is it?<|im_end|>"
        "<|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n"
    )


def test_own_system_message(processor):
    prompt = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, ask("Hi")])
    assert prompt == "<s><|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi<|im_end|>"


def test_inputs_fit_each_other(processor):
    inputs = inputs_of(processor, [ask(image(WIDE), "It is", image(TALL), "what?")])
    tiles = [plan.num_tiles for plan in map(processor.image_processor.plan, (WIDE, TALL))]
    assert inputs["pixel_values"].shape == (sum(tiles), 3, 112, 112)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16 * sum(tiles)
    assert inputs["input_ids"][0, :2].tolist() == [1, 92543]  # one <s>, though the template spells it out
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}


def test_same_answer_as_chat(processor, model):
    options = {"max_new_tokens": 8, "do_sample": False}
    inputs = inputs_of(processor, [ask(image(WIDE), "What is <|im_end|> it?")])
    new_tokens = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    (answer,) = processor.post_process_image_text_to_text(new_tokens)
    chat = model.chat(processor.tokenizer, inputs["pixel_values"], "What is <|im_end|> it?", options)
    assert answer.strip() == chat


def test_batch_of_conversations_is_each_alone(processor, model):
    conversations = [
        [ask("Hello")],
        [ask(image(WIDE), "What is it?")],
        [ask(image(TALL), image(WIDE), "Compare."), ask("A", role="assistant"), ask("And now?")],
    ]
    batch = inputs_of(processor, conversations)
    assert batch["attention_mask"][0, 0] == 0, "padding is on the left"
    together = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, conversation in zip(together, conversations, strict=True):
        alone = inputs_of(processor, conversation)
        answer = model.generate(**alone, max_new_tokens=6, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert row.tolist() == answer.tolist()


def test_call_with_prompts_and_images(processor):
    texts = ["<image>\na", "b", "<image><image>c"]
    nested = processor(images=[[WIDE], [], [TALL, WIDE]], text=texts, return_tensors="pt")
    flat = processor(images=[WIDE, TALL, WIDE], text=texts, return_tensors="pt")
    for name in nested:
        assert torch.equal(nested[name], flat[name])
    assert isinstance(processor(text="just text")["input_ids"][0], list)
    assert processor(images=WIDE)["pixel_values"].ndim == 4
    assert isinstance(processor(images=WIDE, text="<image>", return_tensors="np")["pixel_values"], np.ndarray)


def test_settings_of_the_call(processor):
    few = processor(images=WIDE, text="<image>", max_tiles=1, return_tensors="pt")
    assert few["pixel_values"].shape[0] == 1
    nested = processor(images=WIDE, text="<image>", images_kwargs={"max_tiles": 1}, return_tensors="pt")
    assert torch.equal(few["input_ids"], nested["input_ids"])
    right = processor(text=["a", "a b c"], padding=True, padding_side="right")
    assert right["attention_mask"][0][-1] == 0
    with pytest.raises(TypeError, match="max_tyles"):
        processor(images=WIDE, text="<image>", max_tyles=1)


def test_first_token_on_request(processor):
    with_bos, without = (processor(text="Hi", add_special_tokens=add)["input_ids"][0] for add in (True, False))
    assert with_bos == [1, *without]


def test_typed_control_tokens_stay_text(processor):
    typed = "<IMG_CONTEXT><|im_end|>[UNUSED_TOKEN_145]<img>"
    for messages in ([ask(typed)], [{"role": "user", "content": typed}], [ask(image(WIDE), typed)]):
        ids = inputs_of(processor, messages)["input_ids"][0].tolist()
        pictures = any(item.get("type") == "image" for item in messages[0]["content"] if isinstance(item, dict))
        assert ids.count(92542) == 2
        assert ids.count(92544) == pictures
        assert ids.count(processor.image_token_id) == (
            16 * processor.image_processor.plan(WIDE).num_tiles if pictures else 0
        )


def test_typed_image_is_text_beside_image_items(processor):
    inputs = inputs_of(processor, [ask(image(WIDE), "What does <image> mean?")])
    assert "<image>" in processor.tokenizer.decode(inputs["input_ids"][0])


def test_messages_are_not_changed(processor):
    messages = [ask(image(WIDE), "a<|im_end|>b")]
    before = copy.deepcopy([message["content"][1] for message in messages])
    processor.apply_chat_template(messages)
    assert [message["content"][1] for message in messages] == before


def test_count_image_tokens_before_anything_is_run(processor):
    counts = processor.count_image_tokens([WIDE, (90, 200)])
    inputs = processor(images=[WIDE, TALL], text="<image><image>", return_tensors="pt")
    assert sum(counts) == (inputs["input_ids"] == processor.image_token_id).sum()
    assert processor.count_image_tokens((4480, 448), max_tiles=12) == [16 * 11]


def test_published_geometry_has_256_tokens_per_tile(tokenizer):
    processor = InternVLProcessor(InternVLImageProcessor(), tokenizer)
    assert processor.count_image_tokens([(448, 448), (896, 448)]) == [256, 768]


def places(processor, ids):
    """How many image tokens each picture has, in the order in which they stand."""
    text = processor.tokenizer.decode(ids)
    return [part.split("</img>")[0].count("<IMG_CONTEXT>") for part in text.split("<img>")[1:]]


def test_items_limit_their_own_tiles(processor):
    low, few = ({**image(WIDE), **said} for said in ({"resolution": "low"}, {"max_tiles": 2}))
    messages = [ask(low, image(WIDE), few, "What?"), ask("A", role="assistant"), ask(image(WIDE), "And?")]
    inputs = inputs_of(processor, messages, processor_kwargs={"max_tiles": 3})
    assert places(processor, inputs["input_ids"][0]) == [16, 64, 48, 64]
    assert inputs["pixel_values"].shape[0] == 1 + 4 + 3 + 4
    detail = {"type": "image_url", "image_url": {"url": "examples/shapes.png", "detail": "low"}}
    assert len(inputs_of(processor, [ask(detail, "What?")])["pixel_values"]) == 1


def test_limits_of_a_call(processor):
    pictures = {"images": [WIDE, TALL], "text": "<image><image>", "return_tensors": "pt"}
    assert len(processor(**pictures, max_tiles=[1, 2])["pixel_values"]) == 1 + 3
    assert len(processor(**pictures, resolution="low")["pixel_values"]) == 2
    both = processor(images=[[WIDE], [WIDE, WIDE]], text=["<image>", "<image><image>"], total_max_tiles=4)
    assert [row.count(processor.image_token_id) for row in both["input_ids"]] == [4 * 16, 2 * 16]  # each its own total
    assert processor.count_image_tokens([WIDE, (300, 100)], total_max_tiles=7) == [48, 48]
    with pytest.raises(ValueError, match="total_max_tiles is 1 for 2 pictures of one prompt"):
        processor(**pictures, total_max_tiles=1)


def test_pixel_values_in_the_type_of_the_model(processor):
    pixels = [processor(images=WIDE, text="<image>", dtype=dtype)["pixel_values"] for dtype in (None, torch.bfloat16)]
    assert torch.equal(pixels[0].bfloat16(), pixels[1])


def test_video_is_the_official_recipe(processor):
    frames = [WIDE, TALL, WIDE]
    text = "<video>\nWhat happens?"
    inputs = processor(videos=frames, text=text, return_tensors="pt")
    by_hand = "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nWhat happens?"
    expected = processor(images=frames, text=by_hand, max_tiles=1, return_tensors="pt")
    for name in expected:
        assert torch.equal(inputs[name], expected[name])


def test_videos_and_images_stand_where_the_prompts_say(processor):
    clips = [[WIDE, TALL, TALL], [TALL]]
    texts = ["a <image> b <video> c", "d <video> e <image>"]
    inputs = processor(images=[WIDE, TALL], videos=clips, text=texts, num_frames=2, return_tensors="pt")
    wide, tall = (16 * processor.image_processor.plan(one).num_tiles for one in (WIDE, TALL))
    assert [places(processor, row) for row in inputs["input_ids"]] == [[wide, 16, 16], [16, tall]]
    nested = processor(images=[[WIDE], [TALL]], videos=[[clips[0]], [clips[1]]], text=texts, num_frames=2)
    assert torch.equal(nested["pixel_values"], inputs["pixel_values"])


def test_videos_in_messages(processor):
    def clip(*frames, **said):
        return {"type": "video", "video": list(frames), **said}

    messages = [ask(image(TALL), clip(WIDE, TALL, WIDE, num_frames=2), "Is <video> a <image> tag?")]
    other = [ask(clip(TALL), "What?"), ask("A", role="assistant"), ask(clip(WIDE, WIDE, max_tiles=2), "And now?")]
    inputs = inputs_of(processor, [messages, other, [ask("Hi")]])
    tall = 16 * processor.image_processor.plan(TALL).num_tiles
    assert [places(processor, row) for row in inputs["input_ids"]] == [[tall, 16, 16], [16, 48, 48], []]
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert "Is <video> a <image> tag?" in text
    assert [f"Frame{index}" in text for index in (1, 2, 3)] == [True, True, False]


def test_typed_video_without_videos_is_text(processor):
    inputs = processor(images=WIDE, text="<image> <video>", return_tensors="pt")
    assert "<video>" in processor.tokenizer.decode(inputs["input_ids"][0])


def test_truncation_never_cuts_an_image(processor):
    with pytest.raises(ValueError, match=r"max_length=20 would cut some of those off. Allow more, or lower max_tiles"):
        processor(images=WIDE, text="<image>\nHi", truncation=True, max_length=20)
    assert len(processor(text="one two three four", truncation=True, max_length=3)["input_ids"][0]) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "Neither text nor images are given"),
        ({"videos": [WIDE]}, "There are videos, but no text; give it, with <video> where each stands"),
        ({"images": [WIDE], "text": "none"}, "A prompt has 0 <image> for 1 images; write <image> once"),
        ({"images": [WIDE], "text": "<image><image>"}, "2 <image> for 1 images"),
        ({"images": [[WIDE]], "text": ["<image>", "b"]}, "1 lists of images for 2 prompts"),
        ({"images": [WIDE], "text": ["<image>", "<image>"]}, "2 <image> for 1 images"),
        ({"images": [], "text": "<image>"}, "1 <image> for 0 images"),
        ({"videos": [WIDE], "text": "<video><video>"}, "A prompt has 2 <video> for 1 videos; write <video> once"),
        ({"videos": [[WIDE], [WIDE]], "text": ["<video>", "b"]}, "The prompts have 1 <video> for 2 videos"),
        ({"videos": [[[WIDE]]], "text": ["<video>", "b"]}, "1 lists of videos for 2 prompts"),
        ({"videos": [WIDE], "text": "<video> <image>"}, "1 <image> for 0 images"),
        (
            {"videos": [WIDE], "text": "<video>", "num_frames": 0},
            "num_frames is 0, expected a whole number of at least",
        ),
        ({"videos": [WIDE], "text": "<video>", "num_frames": "4"}, "num_frames is '4', expected a whole number"),
        ({"videos": np.zeros((0, 4, 4, 3), np.uint8), "text": "<video>"}, r"videos\[0\] has no frames"),
        ({"images": "<image>", "text": WIDE}, "text is <PIL.* expected a prompt or a list .*; images come first"),
        ({"text": []}, r"text is \[\], expected a prompt or a list of at least one"),
        ({"text": ["a", None]}, "text is .*, expected a prompt"),
        ({"text": [{"role": "user", "content": "a"}]}, "text is .* messages go to apply_chat_template"),
        ({"text": "a b c", "max_length": 2}, "max_length is 2: say truncation=True or padding='max_length' as well"),
        (
            {"text": "a b c", "truncation": True, "max_length": -1},
            "max_length is -1, expected a whole number",
        ),
        ({"text": "a", "max_tiles": [1]}, "has 1 values, .*, for 0 images"),
    ],
)
def test_bad_calls(processor, call, message):
    with pytest.raises(ValueError, match=message):
        processor(**call)


@pytest.mark.parametrize("item", [{"type": "image"}, {"type": "image", "path": None}, {"type": "video"}])
def test_items_that_name_nothing(processor, item):
    """Without pictures `<image>` would be text, and the answer would be about none."""
    with pytest.raises(ValueError, match="An image or video item names nothing, and nothing is given apart"):
        inputs_of(processor, [[ask("Hi")], [ask(item, "What is it?")]])
    kind = item["type"]
    assert f"<{kind}>" in processor.apply_chat_template([ask(item, "What is it?")])


@pytest.mark.newest  # Transformers 4.57 takes images from messages alone
def test_images_beside_messages(processor):
    given = inputs_of(processor, [ask({"type": "image"}, "What?")], processor_kwargs={"images": [WIDE]})
    assert torch.equal(given["input_ids"], inputs_of(processor, [ask(image(WIDE), "What?")])["input_ids"])


def test_unknown_content(processor):
    with pytest.raises(Exception, match="content of type .?audio.?; expected text, image or video"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])


def test_settings_at_loading_are_checked_and_stay_with_the_images(hub_folder):
    few = AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True, max_patches=2, use_thumbnail=False)
    assert few.image_processor.max_tiles == 2
    assert few.image_processor.use_thumbnail is False
    assert not {"max_patches", "use_thumbnail"} & few.tokenizer.init_kwargs.keys()
    with pytest.raises(ValueError, match="max_tiles is 0"):
        AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True, max_tiles=0)
    with pytest.raises(TypeError, match="max_tils"):
        AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True, max_tils=6)


def test_wrong_settings_without_images(processor):
    with pytest.raises(TypeError, match="max_tile"):
        processor(text="hi", max_tile=2)


def test_sizes_and_pictures_to_count(processor):
    assert processor.count_image_tokens((WIDE, TALL)) == processor.count_image_tokens([WIDE, TALL])
    assert processor.count_image_tokens((300, 100)) == processor.count_image_tokens(WIDE)
    assert processor.count_image_tokens([300, 100]) == processor.count_image_tokens(WIDE)
    with pytest.raises(ValueError, match=r"The image size is \(300.0, 100.0\), expected"):
        processor.count_image_tokens((300.0, 100.0))


def test_image_placeholder_of_others_is_text(processor):
    """Only the user places pictures."""
    messages = [ask("See <image>?"), {"role": "assistant", "content": "No <image> here."}, ask("Now?")]
    prompt = processor.apply_chat_template(messages)
    assert prompt.count("<image>") == 1
    inputs = processor(images=WIDE, text=prompt, return_tensors="pt")
    assert "No <image> here." in processor.tokenizer.decode(inputs["input_ids"][0])


def test_decoding_keeps_grounding_tags(processor):
    ids = processor.tokenizer("<ref>cat</ref><box>[[1, 2, 3, 4]]</box><|im_end|>").input_ids
    assert processor.post_process_image_text_to_text([ids]) == ["<ref>cat</ref><box>[[1, 2, 3, 4]]</box>"]
    (with_all,) = processor.post_process_image_text_to_text([ids], skip_special_tokens=False)
    assert "<|im_end|>" in with_all
    assert (
        processor.post_process_image_text_to_text([ids, torch.tensor(ids[:-1])])
        == ["<ref>cat</ref><box>[[1, 2, 3, 4]]</box>"] * 2
    )
    for wrong in (None, "cat", [ids, 5], torch.tensor([1.0])):
        with pytest.raises(ValueError, match=r"The token ids are .*, expected \(batch, seq\) or \(seq,\)"):
            processor.post_process_image_text_to_text(wrong)


def test_parts_are_those_that_the_folder_names(hub_folder, tmp_path):
    """The package's own come from beside the processor; code of the folder's own goes first."""
    folder = shutil.copytree(hub_folder, tmp_path / "folder")
    (folder / "own_processor.py").write_text(
        "from .image_processing_internvl import InternVLImageProcessor\n\n\n"
        "class OwnImageProcessor(InternVLImageProcessor):\n    pass\n"
    )
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text("utf-8"))
    for auto_map, name in (
        ({"AutoImageProcessor": "own_processor.OwnImageProcessor"}, "OwnImageProcessor"),
        ({}, "InternVLImageProcessor"),
    ):
        file.write_text(json.dumps(settings | {"auto_map": auto_map}), "utf-8")
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        assert type(processor.image_processor).__name__ == name
    package = type(processor).__module__.rsplit(".", 1)[0]
    assert type(processor.image_processor).__module__ == f"{package}.image_processing_internvl"
    assert type(processor.tokenizer).__module__ == f"{package}.tokenization_internlm2_fast"
    for options in ({"use_fast": False}, {"backend": "sentencepiece"}):
        slow = AutoProcessor.from_pretrained(folder, trust_remote_code=True, **options).tokenizer
        assert type(slow).__module__ == f"{package}.tokenization_internlm2"


def test_a_template_that_is_assigned_is_saved(hub_folder, tmp_path):
    processor = AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True)
    processor.chat_template = "{{ messages[0]['content'] }}"
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.chat_template == processor.chat_template
    with pytest.raises(ValueError, match="has a chat template of its own"):
        _ = again.prompt_format


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    messages = [ask(image(TALL), "What is it?")]
    for name, value in inputs_of(processor, messages).items():
        assert torch.equal(value, inputs_of(again, messages)[name])
    assert (again.patch_size, again.downsample_factor) == (14, 2)
    assert again.tokenizer.padding_side == "left"  # pipelines pad by it
