"""Transformers' own doors, on the embedded checkpoint: its pipeline, and batches that answer as one by one."""

import base64
import random
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TextIteratorStreamer, TextStreamer, pipeline


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHAPES, SIGN = str(EXAMPLES / "shapes.png"), str(EXAMPLES / "sign.png")
CIRCLE = "What colour is the circle?"


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return pipeline("image-text-to-text", model=str(tiny_folder), trust_remote_code=True, dtype=torch.float32)


def item(source, key="image", **said):
    return {"type": "image", key: source, **said}


def ask(*content):
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def say(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_a_chat(pipe):
    messages = [ask(item(SHAPES, "path"), CIRCLE)]
    (full,) = pipe(text=messages, max_new_tokens=8)
    assert full["generated_text"] == [*messages, {"role": "assistant", "content": "red"}]
    (new,) = pipe(text=messages, max_new_tokens=8, return_full_text=False)
    assert new["generated_text"] == "red"


TYPED = (
    "What is it?",
    "图中有什么？",
    "<|im_end|>",
    "<|im_",
    "end|>",
    "<img>",
    "<ref>",
    " ",
    "\n",
    "1 < 2",
    "[UNUSED_TOKEN_1]",
)


@pytest.mark.parametrize("seed", range(4))
def test_pipeline_and_demo_ask_with_the_ids_of_chat(pipe, monkeypatch, seed):
    """Whatever is typed; the demo's images are named where there are several."""
    from examples.demo.conversation import Conversation  # noqa: PLC0415

    model, processor, dice, asked = pipe.model, pipe.processor, random.Random(seed), []

    def generate(input_ids, streamer=None, **kwargs):
        asked.append(input_ids[0].tolist())
        for value in (input_ids, input_ids[:, :1]) if streamer is not None else ():
            streamer.put(value)
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, input_ids[:, :1]], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    paths = [SHAPES, SIGN][: dice.randint(1, 2)]
    images = processor.image_processor(paths, resolution="auto")
    said = {"num_patches_list": images["num_patches"].tolist()}
    typed = ["".join(dice.choices(TYPED, k=dice.randint(1, 4))) for _ in range(3)]
    items = [part for path in paths for part in (item(path, "path"),)]
    pipe(text=[ask(*items, *typed[:2])], max_new_tokens=1)
    model.chat(processor.tokenizer, images["pixel_values"], "<image>\n" * len(paths) + typed[0] + typed[1], **said)
    assert asked[0] == asked[1]
    list(Conversation(model, processor, paths).ask(typed[2]))
    names = "".join(f"Image-{number}: <image>\n" for number in (1, 2)) if len(paths) > 1 else "<image>\n"
    model.chat(processor.tokenizer, images["pixel_values"], names + typed[2], **said)
    assert asked[2] == asked[3]


def test_further_turns_and_a_begun_answer(pipe):
    messages = [ask(item(SHAPES, "path"), CIRCLE), say("red"), ask("图中的数字是多少？")]
    (answer,) = pipe(text=messages, max_new_tokens=8, return_full_text=False)
    assert answer["generated_text"] == "4072"
    begun = [ask(item(SHAPES, "path"), CIRCLE), say("It is")]
    prompt = pipe.processor.apply_chat_template(begun, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nIt is")
    (answer,) = pipe(text=begun, max_new_tokens=4)
    (new,) = pipe(images=SHAPES, text=prompt, max_new_tokens=4, return_full_text=False)
    assert [message["role"] for message in answer["generated_text"]] == ["user", "assistant"]
    assert answer["generated_text"][-1]["content"][-1]["text"] == "It is" + new["generated_text"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_of_chats(pipe, batch_size):
    """Padding by the tokenizer's side: on the right it would come between question and answer."""
    chats = [[ask(item(SHAPES, "path"), CIRCLE)], [ask(item(SIGN, "path"), "What does the blue text say, please?")]]
    chats += [[ask(item(SHAPES, "path"), "图中的五角星是什么颜色？")]]
    options = {"max_new_tokens": 8, "return_full_text": False}
    answers = [answer["generated_text"] for (answer,) in pipe(text=chats, batch_size=batch_size, **options)]
    alone = [pipe(text=chat, **options)[0]["generated_text"] for chat in chats]
    assert answers == alone
    assert (answers[0], answers[2]) == ("red", "橙色")


def test_images_beside_plain_text(pipe):
    messages = [[ask(item(None), question)] for question in (CIRCLE, "What colour is the square?")]
    prompts = [pipe.processor.apply_chat_template(one, add_generation_prompt=True) for one in messages]
    options = {"max_new_tokens": 8, "return_full_text": False}
    (answer,) = pipe(images=SHAPES, text=prompts[0], **options)
    assert answer["generated_text"] == "red"
    answers = pipe(images=[SHAPES, SHAPES], text=prompts, **options)
    assert [answer["generated_text"] for answer in answers] == ["red", "blue"]


def test_streaming(pipe, capsys):
    messages = [ask(item(SHAPES, "path"), CIRCLE)]
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=300)
    call = {"text": messages, "generate_kwargs": {"streamer": streamer, "max_new_tokens": 8}}
    thread = Thread(target=pipe, kwargs=call)
    thread.start()
    assert "".join(streamer) == "red"
    thread.join()
    printer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    pipe(text=messages, generate_kwargs={"streamer": printer, "max_new_tokens": 8})
    assert capsys.readouterr().out.strip() == "red"


def test_images_of_every_kind_are_one(pipe):
    picture = Image.open(SHAPES).convert("RGB")
    data = Path(SHAPES).read_bytes()
    items = [
        item(SHAPES, "path"),
        item(SHAPES, "url"),
        item(Path(SHAPES).as_uri(), "url"),
        item(f"data:image/png;base64,{base64.b64encode(data).decode()}", "url"),
        {"type": "image_url", "image_url": {"url": Path(SHAPES).as_uri()}},
        item(data),
        item(picture),
        item(np.asarray(picture)),
        item(torch.from_numpy(np.array(picture)).permute(2, 0, 1)),
    ]
    rows = [inputs_of(pipe.processor, [ask(one, CIRCLE)]) for one in items]
    for row in rows[1:]:
        for name in rows[0]:
            assert torch.equal(row[name], rows[0][name])


def inputs_of(processor, messages):
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def answer_ids(pipe, messages):
    inputs = inputs_of(pipe.processor, messages)
    return pipe.model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]


def test_a_batch_answers_as_one_by_one(pipe):
    few = {"max_tiles": 2}
    frames = [Image.open(path).convert("RGB") for path in (SIGN, SHAPES, SIGN)]
    conversations = [
        [ask("你好")],
        [ask(item(SHAPES, **few), CIRCLE)],
        [ask(item(SIGN, **few), "请读出蓝色的文字。"), say("NORTH"), ask("红色的文字写的是什么？")],
        [
            ask(item(SHAPES, **few), "Image 1.", item(SIGN, resolution="low"), "Image 2. What colour is the star?"),
            say("orange"),
            ask("图中的数字是多少？"),
            say("4072"),
            ask(item(SHAPES, resolution="low"), CIRCLE),
        ],
        [ask({"type": "video", "video": frames, "num_frames": 2}, "What number is written?")],
    ]
    together = answer_ids(pipe, conversations)
    pad = pipe.tokenizer.pad_token_id
    for row, conversation in zip(together.tolist(), conversations, strict=True):
        alone = answer_ids(pipe, conversation)[0].tolist()
        assert row == alone + [pad] * (len(row) - len(alone))


def test_saved_and_loaded_again(pipe, tmp_path):
    folder = tmp_path / "again"
    pipe.model.save_pretrained(folder)
    pipe.processor.save_pretrained(folder)  # which `pipe.save_pretrained` leaves out
    again = pipeline("image-text-to-text", model=str(folder), trust_remote_code=True, dtype=torch.float32)
    messages = [ask(item(SHAPES, "path"), CIRCLE)]
    assert again(text=messages, max_new_tokens=8) == pipe(text=messages, max_new_tokens=8)
