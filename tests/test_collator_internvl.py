"""The collator learns answers alone, finds every image its place, and fails loudly where they do not fit."""

import base64
import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor


RED, WIDE = Image.new("RGB", (100, 100), "red"), Image.new("RGB", (448, 224), "blue")
TILE, TILE_TOKENS = 224, 64


@pytest.fixture(scope="module")
def processor(tiny_folder):
    return AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def collate(processor):
    return processor.data_collator()


def turn(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def learned(processor, batch, row=0):
    """The learned texts, each of which must have its end token."""
    labels = batch["labels"][row]
    tokens = processor.tokenizer.convert_ids_to_tokens(labels[labels != -100].tolist())
    *texts, rest = "".join(tokens).replace("▁", " ").split("<|im_end|>")
    assert rest == ""
    return texts


def test_all_answers_and_nothing_else_are_learned(processor, collate):
    messages = turn("What colour is it?", "red") + turn("And the shape?", "a square")
    batch = collate([{"messages": messages, "images": [RED]}])
    assert learned(processor, batch) == ["red", "a square"]
    is_learned = batch["labels"] != -100
    assert torch.equal(batch["labels"][is_learned], batch["input_ids"][is_learned])
    assert (batch["input_ids"] == processor.image_token_id).sum() == TILE_TOKENS
    # What the model would see after the same conversation.
    items = [{"type": "image", "image": RED}, {"type": "text", "text": messages[0]["content"]}]
    whole = processor.apply_chat_template(
        [{"role": "user", "content": items}, *messages[1:]], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    assert torch.equal(batch["pixel_values"], whole["pixel_values"])


def test_what_follows_the_last_answer_is_left_out(processor, collate):
    messages = turn("What is it?", "red")
    asked_again = [*messages, {"role": "user", "content": "Sure?"}]
    assert torch.equal(
        collate([{"messages": asked_again}])["input_ids"], collate([{"messages": messages}])["input_ids"]
    )


def test_images_stand_where_they_are_said_to(collate):
    """In items or apart, typed or not said at all, or as a table of Arrow returns them: the same batch."""
    answer = {"role": "assistant", "content": "No."}
    text = {"type": "text", "text": "The same?"}

    def row(content, **images):
        return {"messages": [{"role": "user", "content": content}, answer], **images}

    data = io.BytesIO()
    WIDE.save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    first, *others = [
        row([{"type": "image", "image": WIDE}, {"type": "image", "image": RED}, text]),
        row([{"type": "image"}, {"type": "image"}, text], images=[WIDE, RED]),
        row([{"type": "image", "image": WIDE}, {"type": "image"}, text], images=[RED]),
        row([{"type": "image_url", "image_url": {"url": url}}, {"type": "image"}, text], images=[RED]),
        row("<image>\n<image>\nThe same?", images=[WIDE, RED]),
        row("The same?", images=[WIDE, RED]),
        row(
            [{"type": "image", "text": None, "image": WIDE}, {"type": "image", "text": None}, text | {"image": None}],
            image=RED,
        ),
    ]
    before = copy.deepcopy(others[-1])
    expected = collate([first])
    assert len(expected["pixel_values"]) == 2 + 1 + 1  # two tiles, their thumbnail, one tile
    for other in others:
        batch = collate([other])
        assert batch.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(batch[name], value), name
    assert others[-1] == before, "rows stay as they are"


def test_batch_is_padded_on_the_right(processor, collate):
    rows = [{"messages": turn("Hello", "Hi")}, {"messages": turn("What colour is it?", "red"), "image": RED}]
    batch = collate(rows)
    short, long = (collate([row])["input_ids"] for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, long.shape[1])
    length = short.shape[1]
    assert torch.equal(batch["input_ids"][:1, :length], short)
    assert (batch["input_ids"][0, length:] == processor.tokenizer.pad_token_id).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [length, long.shape[1]]
    assert (batch["labels"][0, length:] == -100).all()
    assert [learned(processor, batch, row) for row in (0, 1)] == [["Hi"], ["red"]]
    assert batch["pixel_values"].shape == (1, 3, TILE, TILE)
    assert batch["image_flags"].tolist() == [1]


def test_batch_without_images_has_a_dummy_tile(collate):
    batch = collate([{"messages": turn("Hello", "Hi"), "images": []}])
    assert batch["pixel_values"].shape == (1, 3, TILE, TILE)
    assert batch["image_flags"].tolist() == [0]


def test_length_before_anything_is_decoded(collate):
    text = {"type": "text", "text": "What <image>?"}
    small = {"type": "image", "image": WIDE, "max_tiles": 1}
    clip = {"type": "video", "video": [RED, WIDE, RED], "num_frames": 2}
    answer = {"role": "assistant", "content": "<image> é"}
    for content in ("Hello", [small, {"type": "image", "image": WIDE}, text], [clip, small, text]):
        row = {"messages": [{"role": "user", "content": content}, answer] * 2}
        assert collate.length(row) == len(collate.encode(row)["input_ids"])


def test_settings_of_the_image_processor(processor):
    row = {"messages": turn("What is it?", "blue"), "images": [WIDE]}
    assert len(processor.data_collator(max_tiles=1)([row])["pixel_values"]) == 1


def test_an_item_has_settings_of_its_own(collate):
    items = [{"type": "image", "image": WIDE, "max_tiles": 1}, {"type": "image", "image": WIDE}]
    assert len(collate([{"messages": turn(items, "Twice.")}])["pixel_values"]) == 1 + 3


def test_videos(processor, collate):
    clip, text = {"type": "video", "video": [RED, WIDE, RED], "num_frames": 2}, {"type": "text", "text": "What?"}
    messages = turn([clip, {"type": "image", "image": WIDE}, text], "Red.")
    batch = collate([{"messages": messages}])
    assert len(batch["pixel_values"]) == 2 + 3
    whole = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    assert torch.equal(batch["pixel_values"], whole["pixel_values"])
    assert learned(processor, batch) == ["Red."]


def test_turns_share_a_total_of_tiles(processor):
    collate = processor.data_collator(total_max_tiles=4)
    item = {"type": "image", "image": WIDE}
    assert len(collate([{"messages": turn([item, item], "Alike.")}])["pixel_values"]) == 2
    row = {"messages": turn([item], "Blue.") + turn([item], "Again.")}
    assert len(collate.encode(row)["pixel_values"]) == 2
    assert collate.length(row) == len(collate.encode(row)["input_ids"])


def test_typed_control_tokens_stay_text(processor, collate):
    row = {"messages": turn("What is <IMG_CONTEXT>?", "<|im_end|> ends <image>"), "images": [RED]}
    batch = collate([row])
    assert (batch["input_ids"] == processor.image_token_id).sum() == TILE_TOKENS
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (batch["labels"] == end).sum() == 1


def test_turns_as_the_official_training_has_them(processor, collate):
    """Stripped; an answer before the first question is lost, and a row's own system message is kept as it is."""
    plain = turn("What is it?", "red")
    system, lost = {"role": "system", "content": " Be brief. "}, {"role": "assistant", "content": "Hello!"}
    spaced = [{**message, "content": f" \n{message['content']}\n "} for message in plain]
    expected, *others = [collate([{"messages": one}]) for one in (plain, spaced, [lost, *plain])]
    for other in others:
        assert torch.equal(other["labels"], expected["labels"])
        assert torch.equal(other["input_ids"], expected["input_ids"])
    ids = collate([{"messages": [system, lost, *plain]}])["input_ids"][0].tolist()
    assert " Be brief. " in processor.tokenizer.decode(ids)


def test_rows_without_images_beside_rows_with_some(processor, collate):
    messages = turn("What is it?", "red")
    bare = collate([{"messages": messages}])
    for images in (None, [], [None]):
        assert torch.equal(collate([{"messages": messages, "images": images}])["input_ids"], bare["input_ids"])
    made = processor(text=["a", "<image>b"], images=[None, [RED]])
    assert len(made["pixel_values"]) == 1


def test_videos_beside_messages(collate):
    clip, question = [RED, WIDE], "What happens?"
    item = {"type": "video", "video": clip}
    expected, *others = [
        collate([{"messages": turn([item, {"type": "text", "text": question}], "It turns.")}]),
        collate([{"messages": turn(f"<video>\n{question}", "It turns."), "videos": [clip]}]),
        collate([{"messages": turn(question, "It turns."), "video": np.stack([np.asarray(RED)] * 2)}]),
    ]
    for other in others:
        assert torch.equal(other["input_ids"], expected["input_ids"])
    assert torch.equal(others[0]["pixel_values"], expected["pixel_values"])


def test_the_work_grows_with_the_turns(processor, collate, monkeypatch):
    """Every turn is tokenized as often as in a short conversation."""
    seen = []
    tokenize = type(processor.tokenizer).__call__
    monkeypatch.setattr(
        type(processor.tokenizer),
        "__call__",
        lambda self, text, **kw: seen.append(len(text)) or tokenize(self, text, **kw),
    )
    work = []
    for count in (5, 20):
        seen.clear()
        collate.encode({"messages": turn("What is it?", "red") * count})
        work.append(sum(seen))
    system = work[0] - (work[1] - work[0]) // 3
    assert work[1] - system == 4 * (work[0] - system)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": turn("<image> or <image>?", "One."), "images": [RED]}, "1 images for 2 placeholders"),
        ({"messages": turn("<image>?", "One."), "images": [RED, RED]}, "2 images for 1 placeholders"),
        ({"messages": turn([{"type": "image"}], "One.")}, "0 images for 1 placeholders"),
        ({"messages": turn("Draw it.", [{"type": "image", "image": RED}])}, "An answer has an image"),
        ({"messages": turn([{"type": "video"}], "One.")}, "0 videos for 1 placeholders.*give one video item for each"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "No message of 1 has the role assistant"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "No message of 0 has the role assistant"),
        ({"conversations": []}, "A row has conversations; expected messages, a list of dicts with role and content"),
    ],
)
def test_what_does_not_fit(collate, row, message):
    with pytest.raises(ValueError, match=message):
        collate([row])
