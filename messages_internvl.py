"""What messages hold: text that stays text, and images and videos with the settings written beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from .prompt_internvl import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, guard_text


# Where a message item names its picture or clip, and what else it may say about it.
SOURCE_KEYS = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}
SETTING_KEYS = ("max_tiles", "resolution", "num_frames")


@dataclass(frozen=True, eq=False)
class Visual:
    """An image or a video of a message.

    Attributes:
        source: Whatever the caller calls an image or a video.
        settings: What the item says of `max_tiles`, `resolution` and `num_frames`.
    """

    source: Any
    settings: dict[str, Any]


def prepare_conversation(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Any]) -> list[Any]:
    """Copy messages so that every release of Transformers' templates can read them; a list of conversations alike.

    What is typed never becomes a control token. Where images or videos are items, a typed `<image>` stays text, and
    where videos are, `<video>`; both do so wherever somebody else than the user speaks.

    Args:
        tokenizer: The tokenizer whose control tokens are looked for.
        conversation: Messages with `role` and `content`: text, or a list of items. An image item names its image under
            `image`, `url`, `path` or `base64`, a video item under `video`, `url` or `path`; OpenAI's `image_url` and
            `video_url` items are read too, their `detail` as `resolution`.

    Returns:
        Messages whose content is a list of text items and of `Visual` under `image` and `video`.

    Raises:
        ValueError: If there is no message, or content is not what it should be.
    """
    if not conversation:
        raise ValueError("The conversation is empty; expected at least one message with role and content.")
    if not isinstance(conversation[0], dict):
        return [prepare_conversation(tokenizer, one) for one in conversation]
    contents = [read_content(message.get("content")) for message in conversation]
    kinds = {item["type"] for items in contents for item in items}
    placed = [IMAGE_PLACEHOLDER] if kinds & {"image", "video"} else []
    placed += [VIDEO_PLACEHOLDER] if "video" in kinds else []

    def guarded(item: dict[str, Any], role: str) -> dict[str, Any]:
        if item["type"] != "text":
            return item
        words = placed if role == "user" else (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)
        return {**item, "text": guard_text(tokenizer, item["text"], also=words)}

    return [
        {**message, "content": [guarded(item, message["role"]) for item in items]}
        for message, items in zip(conversation, contents, strict=True)
    ]


def read_content(content: str | Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Read what a message holds, in any of the ways to say it.

    Args:
        content: Text, a list of items, or None.

    Returns:
        Text items, and image and video items: their `Visual` under `image` or `video`, or nothing but their type where
        they are places for what is given apart.

    Raises:
        ValueError: If an item is no dict with a type.
    """
    items = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    for item in items:
        if not isinstance(item, dict) or "type" not in item:
            raise ValueError(
                f'Content holds {item!r}; expected {{"type": "text", "text": ...}} or an image or video item.'
            )
    return [_wrapped(item) for item in items]


def _wrapped(item: dict[str, Any]) -> dict[str, Any]:
    """Wrap what an image or video item names; one that names nothing is a place for `images=` or `videos=`."""
    kind = item["type"].removesuffix("_url")
    if kind not in SOURCE_KEYS:
        return item
    link = item.get(f"{kind}_url") or {}
    said = {**item, **(link if isinstance(link, dict) else {"url": link})}
    source = next((said[key] for key in SOURCE_KEYS[kind] if said.get(key) is not None), None)
    if source is None:
        return {"type": kind}
    settings = {key: said[key] for key in SETTING_KEYS if said.get(key) is not None}
    if said.get("detail") is not None:
        settings.setdefault("resolution", said["detail"])
    return {"type": kind, kind: Visual(source, settings)}
