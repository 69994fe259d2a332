"""Conversations as labelled token ids: the wall between what people type and what the model reads.

Messages, or (question, answer) history, become turns; turns become pieces of ids, each with its author and its kind.
Control tokens, which give a prompt its structure, are encoded only where the prompt format itself writes them: in the
text of a conversation they stay text. No tensors here.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from reprlib import repr as shortened
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .prompt_format_internvl import (
    CONTROL_TOKENS,
    IMAGE_END_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKENS,
    NUMBERED_CONTROL_TOKEN,
    ROLE_TOKENS,
    ROLES,
    UNUSED_TOKEN,
    VIDEO_PLACEHOLDER,
    PromptFormat,
    Turn,
)


# Prompts that are still text are cut at this character (a Unicode noncharacter) inside each guarded token.
CUT = "\ufdd0"
# In such prompts this one, inside a placeholder, says that it is text; it is removed before tokenization.
LITERAL = "\ufdd1"

# Where an image or video item of a message names its source, and which settings it may hold.
SOURCE_KEYS = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}
SETTING_KEYS = ("max_tiles", "resolution", "num_frames")

History = Sequence[tuple[str, str]]
logger = logging.get_logger(__name__)


class Visual:
    """An image or a video of a message. Not a dataclass: some releases of Transformers turn those into dicts.

    Attributes:
        source: The image or video, as the caller gave it.
        settings: `max_tiles`, `resolution` and `num_frames` of the item, where it names them.
    """

    def __init__(self, source: Any, settings: dict[str, Any]) -> None:
        self.source = source
        self.settings = settings


@dataclass(frozen=True)
class Piece:
    """Consecutive token ids of one author and one kind.

    Attributes:
        ids: The token ids.
        role: Whose turn they belong to.
        kind: "text" (with the format's own tokens), "image" (the tokens of one image) or "answer" (to learn or score).
        image: Which image of the conversation, from 0; None for the other kinds.
    """

    ids: list[int]
    role: str
    kind: str
    image: int | None = None


def turns_of_history(history: History, question: str, has_images: bool) -> list[Turn]:
    """Return (question, answer) pairs and a new question as turns.

    Args:
        history: Earlier questions and answers; an answer's `<image>` is text.
        question: The new question.
        has_images: Whether `<image>` in questions marks an image; otherwise it is text.

    Returns:
        The turns.
    """

    def asked(text: str) -> Turn:
        return Turn("user", tuple(split_at(IMAGE_PLACEHOLDER, text)) if has_images else (text,))

    past = chain.from_iterable((asked(old), Turn("assistant", (answer,))) for old, answer in history)
    return [*past, asked(question)]


def split_at(placeholder: str, text: str) -> Iterator[str | None]:
    """Yield the text around the placeholders, and None for each of them."""
    first, *others = text.split(placeholder)
    yield first
    for other in others:
        yield from (None, other)


class PromptEncoder:
    """Encodes conversations and prompts with one tokenizer.

    Text is tokenized in runs that end where an image or a turn begins, which gives the ids of the whole text: control
    tokens split it in every tokenizer. Image tokens are inserted as ids.

    Args:
        tokenizer: The checkpoint's tokenizer.

    Raises:
        TypeError: If it is not a tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not hasattr(tokenizer, "get_added_vocab"):
            raise TypeError(
                f"tokenizer is of type {type(tokenizer).__name__}; expected the checkpoint's tokenizer, which a "
                "processor has as processor.tokenizer."
            )
        self.tokenizer = tokenizer
        self.added_tokens = tokenizer.get_added_vocab()
        roles = {getattr(tokenizer, name, None) for name in ROLE_TOKENS} - {None, ""}
        self.control_tokens = roles | {
            token for token in self.added_tokens if token in CONTROL_TOKENS or NUMBERED_CONTROL_TOKEN.fullmatch(token)
        }

    def guard(self, text: str, literal: Sequence[str] = (), only: Iterable[str] | None = None) -> str:
        """Mark where text must be cut so that no control token in it is encoded as one.

        Args:
            text: Text that somebody typed.
            literal: Placeholders that are text here.
            only: Guard these tokens alone; None means all control tokens.

        Returns:
            The text with `CUT` inside each such token and `LITERAL` inside each such placeholder; otherwise unchanged.

        Raises:
            ValueError: If the text holds half of a surrogate pair, which no tokenizer can encode.
        """
        text = checked_text(text).replace(CUT, "").replace(LITERAL, "")
        for placeholder in literal:
            text = text.replace(placeholder, placeholder[0] + LITERAL + placeholder[1:])
        tokens = sorted(map(re.escape, self.control_tokens if only is None else only))
        tokens += [UNUSED_TOKEN] if only is None else []
        if not tokens:
            return text
        return re.sub(f"(?={'|'.join(tokens)})(.)", lambda match: match[1] + CUT, text, flags=re.DOTALL)

    def begins_with_bos(self) -> bool:
        """Say whether the tokenizer puts its first token in front of every text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("").input_ids[:1] == [bos]

    def encode(
        self,
        style: PromptFormat,
        turns: Iterable[Turn],
        num_tiles: Sequence[int] = (),
        tile_tokens: int = 0,
        *,
        system: str | None = None,
        awaits_answer: bool = True,
        trusts_answers: bool = False,
    ) -> list[Piece]:
        """Encode a conversation.

        Args:
            style: The prompt format.
            turns: The turns; a first turn of the system takes the place of `system`.
            num_tiles: Tiles of each image, thumbnail included.
            tile_tokens: Image tokens of one tile.
            system: System message; None means the trained one.
            awaits_answer: Whether the model's answer comes next.
            trusts_answers: Whether control tokens, other than image tokens, are tokens in learned answers.

        Returns:
            The pieces in order. A longer conversation's pieces begin with those of a shorter one.

        Raises:
            ValueError: If the turns have more or fewer images than `num_tiles`, the format has no such role, or a
                learned answer holds an added token that is not encoded as one.
        """
        turns = style.with_system(turns, system)
        check_placeholders(sum(turn.parts.count(None) for turn in turns), num_tiles)
        self._check_format(style)
        writer = _Writer(self, [count * tile_tokens for count in num_tiles])
        if self.begins_with_bos():
            writer.pieces.append(Piece([self.tokenizer.bos_token_id], "system", "text"))
        for index, turn in enumerate(turns):
            if turn.is_learned:
                is_last = index == len(turns) - 1 and not awaits_answer
                self._learn(writer, style, turn, is_last, trusts_answers)
                continue
            before, after = style.around(turn.role)
            writer.begin(turn.role, before)
            for text in turn.parts if turn.parts.count(None) else ("".join(turn.parts),):
                writer.image() if text is None else writer.write(self.guard(text))
            writer.write(after)
        if awaits_answer:
            writer.begin("assistant", style.answer_start)
        writer.flush()
        return writer.pieces

    def _learn(self, writer: "_Writer", style: PromptFormat, turn: Turn, is_last: bool, trusts: bool) -> None:
        """Write an answer to learn with the token that ends it, where the format ends this turn with that token."""
        if None in turn.parts:
            raise ValueError("An answer has an image, which no model could learn to write; expected text alone.")
        text, after = "".join(turn.parts), style.around(turn.role)[1]
        ends = after.startswith(style.stop) or is_last
        answer = style.answer_space + self.guard(text, only=IMAGE_TOKENS if trusts else None)
        writer.begin(turn.role, style.answer_start)
        self._check_learned(text, writer.answer(answer + (style.stop if ends else "")))
        if not is_last:
            writer.write(after.removeprefix(style.stop) if ends else after)

    def encode_text(
        self, prompt: str, num_tiles: Sequence[int], tile_tokens: int, add_special_tokens: bool = True
    ) -> list[int]:
        """Encode a prompt that is written already, cut where `guard` marked it.

        Args:
            prompt: The prompt; control tokens in it are tokens. `<image>` marks the images, if there are any.
            num_tiles: Tiles of each image, thumbnail included.
            tile_tokens: Image tokens of one tile.
            add_special_tokens: Whether to put the tokenizer's first token in front, unless the prompt spells it out.

        Returns:
            The ids.

        Raises:
            ValueError: If there are more or fewer `<image>` than images.
        """
        parts = list(split_at(IMAGE_PLACEHOLDER, checked_text(prompt))) if num_tiles else [checked_text(prompt)]
        check_placeholders(parts.count(None), num_tiles)
        writer = _Writer(self, [count * tile_tokens for count in num_tiles])
        spells_bos = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        if add_special_tokens and not spells_bos and self.begins_with_bos():
            writer.pieces.append(Piece([self.tokenizer.bos_token_id], "system", "text"))
        for part in parts:
            writer.image() if part is None else writer.write(part)
        writer.flush()
        return ids_of(writer.pieces)

    def text_ids(self, text: str, is_first: bool = False) -> list[int]:
        """Tokenize text cut at `CUT`; unless it is the first of a prompt, as it is tokenized behind a token.

        Some tokenizers put a blank in front of every text they are given. Behind `</img>` they do not.
        """
        ids = []
        anchor = self.added_tokens.get(IMAGE_END_TOKEN)
        for part in filter(None, text.replace(LITERAL, "").split(CUT)):
            if anchor is None or (is_first and not ids):
                ids += self.tokenizer(part, add_special_tokens=False).input_ids
                continue
            anchored = self.tokenizer(IMAGE_END_TOKEN + part, add_special_tokens=False).input_ids
            ids += anchored[anchored.index(anchor) + 1 :]
        return ids

    def image_ids(self, num_image_tokens: int) -> list[int]:
        """Return the ids of one image.

        Raises:
            ValueError: If the tokenizer has no image tokens.
        """
        if missing := [token for token in IMAGE_TOKENS if token not in self.added_tokens]:
            raise ValueError(
                f"The tokenizer has no token {', '.join(missing)}; expected the checkpoint's own tokenizer, which has "
                f"{', '.join(IMAGE_TOKENS)}."
            )
        start, end, context = (self.added_tokens[token] for token in IMAGE_TOKENS)
        return [start, *[context] * num_image_tokens, end]

    def splits_at_start(self, text: str) -> bool:
        """Say whether text begins with a control token, so that it is tokenized apart from what is before it."""
        return text.startswith(tuple(self.control_tokens))

    def splits_at_end(self, text: str) -> bool:
        """Say whether text ends with a control token."""
        return text.endswith(tuple(self.control_tokens))

    def _check_format(self, style: PromptFormat) -> None:
        written = "".join(chain.from_iterable(style.turns.values())) + style.stop
        if missing := sorted(t for t in CONTROL_TOKENS if t in written and t not in self.control_tokens):
            logger.warning_once(
                f"The tokenizer has no token {', '.join(missing)}, which the prompt format {style.name} writes: they "
                "are encoded as text. Check config.template and the tokenizer."
            )

    def _check_learned(self, text: str, ids: Sequence[int]) -> None:
        """Make sure that no added token in an answer trains nothing."""
        if not self.added_tokens:
            return
        tokens = sorted(self.added_tokens, key=len, reverse=True)
        found = set(re.findall("|".join(map(re.escape, tokens)), text))
        lost = sorted(token for token in found if self.added_tokens[token] not in ids)
        if published := [token for token in lost if token in self.control_tokens]:
            logger.warning_once(
                f"An answer holds {', '.join(published)}, learned as text. To learn control tokens as tokens, use "
                "data_collator(control_tokens=True)."
            )
        if own := [token for token in lost if token not in published]:
            raise ValueError(
                f"An answer holds the added token {', '.join(own)}, which is encoded as other tokens and would not be "
                "learned: control tokens stay text unless control_tokens=True. Give the token another name."
            )


class _Writer:
    """Collects text and images of a conversation, and encodes the text in runs."""

    def __init__(self, encoder: PromptEncoder, image_tokens: Iterable[int]) -> None:
        self.encoder = encoder
        self.images = enumerate(image_tokens)
        self.pieces: list[Piece] = []
        self.text, self.role, self.is_first = "", "user", True

    def begin(self, role: str, before: str) -> None:
        """Begin a turn, and a new run if control tokens separate it from the text before."""
        if self.encoder.splits_at_start(before) or self.encoder.splits_at_end(self.text):
            self.flush()
        self.role = role
        self.write(before)

    def write(self, text: str) -> None:
        self.text += text

    def image(self) -> None:
        """Insert the tokens of the next image."""
        self.flush()
        index, count = next(self.images)
        self.pieces.append(Piece(self.encoder.image_ids(count), self.role, "image", index))
        self.is_first = False

    def answer(self, text: str) -> list[int]:
        """Insert an answer as a piece of its own, and return its ids.

        They are those that follow in the whole text, unless one token would span the boundary: generation goes on
        behind the tokens of the prompt.
        """
        run, is_first = self.text, self.is_first
        self.flush()
        start, whole = self.encoder.text_ids(run, is_first), self.encoder.text_ids(run + text, is_first)
        ids = whole[len(start) :] if whole[: len(start)] == start else self.encoder.text_ids(text)
        self.pieces.append(Piece(ids, self.role, "answer"))
        self.is_first = False
        return ids

    def flush(self) -> None:
        """Encode the run."""
        if self.text:
            self.pieces.append(Piece(self.encoder.text_ids(self.text, self.is_first), self.role, "text"))
            self.text, self.is_first = "", False


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    style: PromptFormat,
    turns: Iterable[Turn],
    num_tiles: Sequence[int] = (),
    tile_tokens: int = 0,
    system: str | None = None,
) -> list[int]:
    """Return the ids of a conversation that awaits its answer; see `PromptEncoder.encode`."""
    return ids_of(PromptEncoder(tokenizer).encode(style, turns, num_tiles, tile_tokens, system=system))


def ids_of(pieces: Iterable[Piece]) -> list[int]:
    """Return the ids of pieces, one after the other."""
    return list(chain.from_iterable(piece.ids for piece in pieces))


def decode_answer(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop: str = "", header: str = ""
) -> str:
    """Turn generated tokens into text.

    Args:
        tokenizer: The checkpoint's tokenizer.
        token_ids: The generated tokens.
        stop: The text that ends an answer; what follows it is left out.
        header: What the format's answers begin with; up to its last token everything is left out.

    Returns:
        The text, in which vocabulary such as grounding tags or a developer's tokens stays, and control tokens do not.
    """
    encoder = PromptEncoder(tokenizer)
    token_ids = list(token_ids)
    if header and (last := encoder.text_ids(header)[-1]) in token_ids:
        token_ids = token_ids[len(token_ids) - token_ids[::-1].index(last) :]
    kept = {index: token for token, index in encoder.added_tokens.items() if token not in encoder.control_tokens}
    text, start = "", 0
    for position, token_id in enumerate([*token_ids, None]):
        if token_id is None or token_id in kept:
            run = token_ids[start:position]
            # The official text: what slow tokenizers do by default, fast ones only where asked (InternLM2's) or never.
            official = {"skip_special_tokens": True, "spaces_between_special_tokens": True}
            text += tokenizer.decode(run, **official) if run else ""
            text += kept.get(token_id, "")
            start = position + 1
    return text.split(stop)[0] if stop else text


def check_placeholders(found: int, num_tiles: Sequence[int]) -> None:
    """Make sure that there is one placeholder for each image.

    Raises:
        ValueError: If there are more or fewer.
    """
    if found != len(num_tiles):
        raise ValueError(
            f"The conversation has {found} {IMAGE_PLACEHOLDER} for {len(num_tiles)} image(s) of {list(num_tiles)} "
            f"tiles. Write {IMAGE_PLACEHOLDER} once for each image where it stands; num_patches_list of chat() says "
            "how many tiles each image has."
        )


def checked_text(text: str) -> str:
    """Return the text, if a tokenizer can encode it.

    Raises:
        ValueError: If it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text {shortened(text)} holds half of a surrogate pair at position {error.start}; expected Unicode "
            'text: repair it, for example with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from error
    return text


def prepare_conversation(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Any], takes_placeholders: bool = True
) -> list[Any]:
    """Copy messages so that every release of Transformers' templates can read them; a list of conversations alike.

    Adjacent text items are joined and then guarded: control tokens stay text, however they are cut into items. Where
    images or videos are items, a typed `<image>` stays text, and where videos are, `<video>`; both do so wherever
    somebody else than the user speaks.

    Args:
        tokenizer: The tokenizer whose control tokens are looked for.
        conversation: Messages with `role` and `content`: text, or a list of items. An image item names its image under
            `image`, `url`, `path` or `base64`, a video item under `video`, `url` or `path`; OpenAI's `image_url` and
            `video_url` items are read too, their `detail` as `resolution`.
        takes_placeholders: Whether an item may name nothing, and mark where what is given apart stands.

    Returns:
        Messages whose content is a list of text items and of `Visual` under `image` and `video`.

    Raises:
        ValueError: If there is no message, or a role or content is not what it should be.
    """
    checked_messages(conversation)
    if not any(isinstance(message, dict) for message in conversation):
        return [prepare_conversation(tokenizer, one, takes_placeholders) for one in conversation]
    contents = [read_content(message.get("content")) for message in conversation]
    if not takes_placeholders and any(
        item in ({"type": "image"}, {"type": "video"}) for items in contents for item in items
    ):
        raise ValueError(
            "An image or video item names nothing, and nothing is given apart; expected for example "
            '{"type": "image", "path": ...}.'
        )
    guard, literal = PromptEncoder(tokenizer).guard, literal_placeholders(contents)

    def guarded(item: dict[str, Any], role: str) -> dict[str, Any]:
        if item["type"] != "text":
            return item
        words = literal if role == "user" else (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)
        return {"type": "text", "text": guard(item["text"], literal=words)}

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


def literal_placeholders(contents: Iterable[Sequence[dict[str, Any]]]) -> list[str]:
    """Return the placeholders that are text in questions of a conversation, as images or videos are items of it."""
    kinds = {item["type"] for items in contents for item in items}
    literal = [IMAGE_PLACEHOLDER] if kinds & {"image", "video"} else []
    return literal + ([VIDEO_PLACEHOLDER] if "video" in kinds else [])


def checked_messages(conversation: Any) -> Any:
    """Return a conversation, or a list of conversations, if it is a list of messages or of lists.

    Raises:
        ValueError: If it is empty, or something else.
    """
    if isinstance(conversation, (str, dict)) or (conversation and not hasattr(conversation, "__getitem__")):
        raise ValueError(f"A conversation is {shortened(conversation)}; expected a list of messages.")
    if not conversation:
        raise ValueError("The conversation is empty; expected at least one message with role and content.")
    if any(isinstance(message, dict) for message in conversation):
        for message in conversation:
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise ValueError(
                    f"A message is {shortened(message)}; expected a dict with content and a role of "
                    f"{', '.join(ROLES)}."
                )
    return conversation


def read_content(content: str | Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Read the content of a message, in any of the ways to write it.

    Args:
        content: Text, a list of items, or None.

    Returns:
        Text items, adjacent ones joined, and image and video items: their `Visual` under `image` or `video`, or
        nothing but their type where they mark what is given apart.

    Raises:
        ValueError: If an item is not a dict with a type and what belongs to it.
    """
    if isinstance(content, dict) or not hasattr(content or (), "__iter__"):
        raise ValueError(f"Content is {shortened(content)}; expected text or a list of items.")
    items = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    read: list[dict[str, Any]] = []
    for item in items:
        is_item = isinstance(item, dict) and isinstance(item.get("type"), str)
        if not is_item or (item["type"] == "text" and not isinstance(item.get("text"), str)):
            raise ValueError(
                f'Content holds {shortened(item)}; expected {{"type": "text", "text": ...}} or an image or video item.'
            )
        if item["type"] == "text" and read and read[-1]["type"] == "text":
            read[-1] = {"type": "text", "text": read[-1]["text"] + item["text"]}
        else:
            read.append({"type": "text", "text": item["text"]} if item["type"] == "text" else _wrapped(item))
    return read


def _wrapped(item: dict[str, Any]) -> dict[str, Any]:
    """Wrap the source of an image or video item; one that names none marks where one of those given apart stands."""
    kind = item["type"].removesuffix("_url")
    if kind not in SOURCE_KEYS:
        return item
    link = item.get(f"{kind}_url") or {}
    said = {**item, **(link if isinstance(link, dict) else {"url": link})}
    said = {key: value for key, value in said.items() if value is not None and key not in ("type", f"{kind}_url")}
    source = next((said[key] for key in SOURCE_KEYS[kind] if key in said), None)
    if source is None and said:
        raise ValueError(
            f"An item of type {kind} has {', '.join(said)} and names no {kind}; expected it under one of "
            f'{", ".join(SOURCE_KEYS[kind])}. Only {{"type": "{kind}"}} alone marks where one given apart stands.'
        )
    if source is None:
        return {"type": kind}
    if kind == "image" and isinstance(source, (list, tuple)):
        raise ValueError(f"An image item names {len(source)} images; write an item for each.")
    if unknown := said.keys() - {*SOURCE_KEYS[kind], *SETTING_KEYS, "detail"}:
        logger.warning_once(
            f"An item of type {kind} has {', '.join(sorted(unknown))}, which are ignored; supported are "
            f"{', '.join(SETTING_KEYS)}."
        )
    settings = {key: said[key] for key in SETTING_KEYS if key in said}
    if "detail" in said:
        settings.setdefault("resolution", said["detail"])
    return {"type": kind, kind: Visual(source, settings)}
