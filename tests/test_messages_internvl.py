"""Messages: what is typed stays text, and items name pictures and clips in every way people write them."""

import pytest
from internvl_chat.messages_internvl import Visual, prepare_conversation
from internvl_chat.prompt_internvl import CUT


class Tokenizer:
    added_tokens_decoder = {1: "<s>"}
    all_special_tokens = ["<s>"]


def items_of(*items, role="user"):
    (message,) = prepare_conversation(Tokenizer(), [{"role": role, "content": list(items)}])
    return message["content"]


def text_of(text, *items, role="user"):
    return items_of({"type": "text", "text": text}, *items, role=role)[0]["text"]


PICTURE, CLIP = {"type": "image", "path": "a.png"}, {"type": "video", "path": "a.mp4"}


@pytest.mark.parametrize("key", ["image", "url", "path", "base64"])
def test_images_under_every_name(key):
    (item,) = items_of({"type": "image", key: "x", "image" if key != "image" else "url": None, "max_tiles": 2})
    assert item.keys() == {"type", "image"}
    assert isinstance(item["image"], Visual)
    assert (item["image"].source, item["image"].settings) == ("x", {"max_tiles": 2})


@pytest.mark.parametrize("kind", ["image", "video"])
def test_links_as_openai_writes_them(kind):
    links = ["x", {"url": "x"}, {"url": "x", "detail": "low"}]
    visuals = [items_of({"type": f"{kind}_url", f"{kind}_url": link})[0] for link in links]
    assert [visual["type"] for visual in visuals] == [kind] * 3
    assert [visual[kind].source for visual in visuals] == ["x"] * 3
    assert [visual[kind].settings for visual in visuals] == [{}, {}, {"resolution": "low"}]


def test_places_and_unknown_items_pass():
    assert items_of({"type": "image"}, {"type": "audio", "audio": 1}) == [
        {"type": "image"},
        {"type": "audio", "audio": 1},
    ]


def test_what_is_typed_stays_text():
    typed = "<s> <image> <video>"
    cut_image, cut_video = f"<{CUT}image>", f"<{CUT}video>"
    assert text_of(typed) == f"<{CUT}s> <image> <video>"
    assert text_of(typed, PICTURE) == f"<{CUT}s> {cut_image} <video>"
    assert text_of(typed, CLIP) == f"<{CUT}s> {cut_image} {cut_video}"
    assert text_of(typed, role="assistant") == f"<{CUT}s> {cut_image} {cut_video}"


def test_conversations_and_plain_content():
    first, second = prepare_conversation(Tokenizer(), [[{"role": "user", "content": "a"}], [{"role": "tool"}]])
    assert first == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert second == [{"role": "tool", "content": []}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "conversation is empty; expected at least one message"),
        ([[]], "conversation is empty"),
        ([{"role": "user", "content": [{"text": "hi"}]}], r"Content holds \{'text': 'hi'\}"),
        ([{"role": "user", "content": ["hi"]}], "Content holds 'hi'"),
    ],
)
def test_bad_messages(messages, message):
    with pytest.raises(ValueError, match=message):
        prepare_conversation(Tokenizer(), messages)
