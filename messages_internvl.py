"""What messages hold: text that stays text, and images and videos with the settings written beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .prompt_internvl import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, guard_text


# Where a message item names its picture or clip, and what else it may say about it.
SOURCE_KEYS = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}
SETTING_KEYS = ("max_tiles", "resolution", "num_frames")
ROLES = ("system", "user", "assistant", "tool")

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Visual:
    """An image or a video of a message.

    Attributes:
        source: Whatever the caller calls an image or a video.
        settings: What the item says of `max_tiles`, `resolution` and `num_frames`.
    """

    source: Any
    settings: dict[str, Any]


def prepare_conversation(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Any], takes_places: bool = True
) -> list[Any]:
    """Copy messages so that every release of Transformers' templates can read them; a list of conversations alike.

    What is typed never becomes a control token. Where images or videos are items, a typed `<image>` stays text, and
    where videos are, `<video>`; both do so wherever somebody else than the user speaks.

    Args:
        tokenizer: The tokenizer whose control tokens are looked for.
        conversation: Messages with `role` and `content`: text, or a list of items. An image item names its image under
            `image`, `url`, `path` or `base64`, a video item under `video`, `url` or `path`; OpenAI's `image_url` and
            `video_url` items are read too, their `detail` as `resolution`.
        takes_places: Whether an item may name nothing, and be the place of what is given apart.

    Returns:
        Messages whose content is a list of text items and of `Visual` under `image` and `video`.

    Raises:
        ValueError: If there is no message, or a role or content is not what it should be.
    """
    if not conversation:
        raise ValueError("The conversation is empty; expected at least one message with role and content.")
    if isinstance(conversation, (str, dict)) or not hasattr(conversation, "__getitem__"):
        raise ValueError(f"A conversation is {shortened(conversation)}; expected a list of messages.")
    if not any(isinstance(message, dict) for message in conversation):
        return [prepare_conversation(tokenizer, one, takes_places) for one in conversation]
    for message in conversation:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(
                f"A message is {shortened(message)}; expected a dict with content and a role of {', '.join(ROLES)}."
            )
    contents = [read_content(message.get("content")) for message in conversation]
    if not takes_places and any(
        item in ({"type": "image"}, {"type": "video"}) for items in contents for item in items
    ):
        raise ValueError(
            "An image or video item names nothing, and nothing is given apart; expected for example "
            '{"type": "image", "path": ...}.'
        )
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


def media_apart(conversation: Sequence[Any]) -> tuple[list[Any], dict[str, list[Any]]]:
    """Take images and videos out of messages, so that nothing but text and placeholders is rendered.

    Args:
        conversation: What `prepare_conversation` returns: messages, or a list of conversations.

    Returns:
        The messages, whose image and video items name nothing; and under `images` and `videos` what they named, in
        order, a list for each conversation if there are several. A list is empty if nothing was named.
    """
    if not isinstance(conversation[0], dict):
        parts = [media_apart(one) for one in conversation]
        media = {name: [visuals[name] for _, visuals in parts] for name in ("images", "videos")}
        return [messages for messages, _ in parts], {
            name: visuals if any(visuals) else [] for name, visuals in media.items()
        }
    media = {"images": [], "videos": []}
    messages = []
    for message in conversation:
        for item in message["content"]:
            if item["type"] in SOURCE_KEYS and item["type"] in item:
                media[f"{item['type']}s"].append(item[item["type"]])
        bare = [{"type": item["type"]} if item["type"] in SOURCE_KEYS else item for item in message["content"]]
        messages.append({**message, "content": bare})
    return messages, media


def read_content(content: str | Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Read what a message holds, in any of the ways to say it.

    Args:
        content: Text, a list of items, or None.

    Returns:
        Text items, and image and video items: their `Visual` under `image` or `video`, or nothing but their type where
        they are places for what is given apart.

    Raises:
        ValueError: If an item is no dict with a type and what belongs to it.
    """
    if isinstance(content, dict) or not hasattr(content or (), "__iter__"):
        raise ValueError(f"Content is {shortened(content)}; expected text or a list of items.")
    items = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    for item in items:
        is_item = isinstance(item, dict) and isinstance(item.get("type"), str)
        if not is_item or (item["type"] == "text" and not isinstance(item.get("text"), str)):
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
    said = {key: value for key, value in said.items() if value is not None and key not in ("type", f"{kind}_url")}
    source = next((said[key] for key in SOURCE_KEYS[kind] if key in said), None)
    if source is None and said:
        raise ValueError(
            f"An item of type {kind} says {', '.join(said)} and names no {kind}; expected it under one of "
            f'{", ".join(SOURCE_KEYS[kind])}. Only {{"type": "{kind}"}} alone is a place for what is given apart.'
        )
    if source is None:
        return {"type": kind}
    if kind == "image" and isinstance(source, (list, tuple)):
        raise ValueError(f"An image item names {len(source)} images; write an item for each.")
    if unknown := said.keys() - {*SOURCE_KEYS[kind], *SETTING_KEYS, "detail"}:
        logger.warning_once(
            f"An item of type {kind} says {', '.join(sorted(unknown))}, which changes nothing; what does is "
            f"{', '.join(SETTING_KEYS)}."
        )
    settings = {key: said[key] for key in SETTING_KEYS if key in said}
    if "detail" in said:
        settings.setdefault("resolution", said["detail"])
    return {"type": kind, kind: Visual(source, settings)}
