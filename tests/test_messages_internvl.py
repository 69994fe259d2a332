"""Messages: what is typed stays text, and items name pictures and clips in every way people write them."""

import logging

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
        ("hi", "A conversation is 'hi'; expected a list of messages"),
        (["hi", "there"], "A conversation is 'hi'; expected a list of messages"),
        ({"role": "user", "content": "hi"}, "A conversation is {.*; expected a list of messages"),
        (
            [{"content": "hi"}],
            "A message is .*; expected a dict with content and a role of system, user, assistant, tool",
        ),
        ([{"role": "human", "content": "hi"}], "A message is .*'human'.*; expected a dict with content and a role"),
        ([{"role": "user"}, [{"role": "user"}]], r"A message is \[.*; expected a dict"),
        ([{"role": "user", "content": 5}], "Content is 5; expected text or a list of items"),
        ([{"role": "user", "content": {"type": "text", "text": "hi"}}], "Content is .*; expected text or a list"),
        ([{"role": "user", "content": [{"type": "text"}]}], "Content holds {'type': 'text'}"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "Content holds"),
        ([{"role": "user", "content": [{"type": 5}]}], "Content holds {'type': 5}"),
        (
            [{"role": "user", "content": [{"type": "image", "file": "a.png"}]}],
            "An item of type image says file and names no image; expected it under one of image, url, path, base64",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "max_tiles": 2}]}],
            "image says max_tiles and names no image",
        ),
        ([{"role": "user", "content": [{"type": "image", "image": ["a", "b"]}]}], "names 2 images; write an item for"),
    ],
)
def test_bad_messages(messages, message):
    with pytest.raises(ValueError, match=message):
        prepare_conversation(Tokenizer(), messages)


def test_what_an_item_says_in_vain_is_reported(caplog):
    caplog.set_level(logging.WARNING)
    (item,) = items_of({**CLIP, "fps": 2, "max_tils": 3, "text": None})
    assert item["video"].settings == {}
    assert "An item of type video says fps, max_tils, which changes nothing" in caplog.text


def test_places_may_be_forbidden():
    for places in ({"type": "image"}, {"type": "video", "video": None}):
        with pytest.raises(ValueError, match="An image or video item names nothing, and nothing is given apart"):
            prepare_conversation(Tokenizer(), [{"role": "user", "content": [places]}], takes_places=False)
