"""Conversations as training batches: the loss is on the answers, with any number of turns and images.

`processor.data_collator()` makes one; it goes where trainers take a `data_collator`. It needs no trainer itself. Its
prompts are those of `chat` and the processor, piece by piece.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from reprlib import repr as shortened
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from .conversation_internvl import (
    PromptEncoder,
    checked_messages,
    ids_of,
    literal_placeholders,
    read_content,
    split_at,
)
from .image_loading_internvl import check_images
from .media_internvl import MediaReader
from .prompt_format_internvl import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, PromptFormat, Turn
from .tiling_internvl import tokens_per_tile
from .video_internvl import check_videos


IGNORED_LABEL = -100
PLACEHOLDERS = {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}


class ConversationCollator:
    """Turns conversations into batches whose labels are the answers, each with the token that ends it.

    Prompt and answer are encoded piece by piece, so that an answer's tokens are those that generation would have to
    give after its prompt. As in the official training, turns are stripped of blanks around them, answers
    before the first question are left out, and so is what follows the last answer. A batch without images gets a dummy
    tile, flagged 0: the model sends it through the vision encoder, so that all processes of a distributed run do.

    `length` measures a conversation without decoding its images; `encode` and `join` are the two halves of a call.

    Args:
        processor: The checkpoint's processor.
        control_tokens: Whether control tokens written in answers are learned as tokens; otherwise they are text.
        num_frames: Frames of each video whose item does not say; None means all of them.
        **settings: Settings of the image processor, such as `max_tiles`. The images of all turns of a conversation
            share `total_max_tiles`.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        control_tokens: bool = False,
        num_frames: int | None = None,
        **settings: Any,
    ) -> None:
        self.processor = processor
        self.control_tokens, self.num_frames, self.settings = control_tokens, num_frames, settings
        # By planning a smallest image: settings are checked here, and not at the first batch of a training run.
        self.tile_size = processor.image_processor.plan((1, 1), **settings).tile_size
        side, patch_size, factor = self.tile_size, processor.patch_size, processor.downsample_factor
        self.tile_tokens = tokens_per_tile(side, side, patch_size, factor)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Join conversations to a batch, padded on the right.

        Args:
            rows: Each has `messages`, as the processor's `apply_chat_template` takes them, with images in their items
                or apart, in `images` (or a single `image`), in the order of the placeholders for them: image items
                without an image, `<image>` in the text of messages that have no image items; where there is neither,
                all stand before the first question. So it is with videos, in `videos` (or a single `video`).

        Returns:
            `input_ids`, `attention_mask` and `labels` (rows, seq); `pixel_values` (tiles, 3, tile_size, tile_size) and
            `image_flags` (tiles,).

        Raises:
            ValueError: If images and placeholders do not fit, there is no answer to learn or an image in one, or an
                added token in an answer would not be learned.
        """
        return self.join([self.encode(row) for row in rows])

    def join(self, encoded: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Join conversations that are encoded already, as a data set may do with `encode`.

        Args:
            encoded: What `encode` gives for each.

        Returns:
            See `__call__`.
        """
        if not encoded:
            raise ValueError("There are no rows; expected at least one conversation.")
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED_LABEL}
        batch = {
            name: pad_sequence([row[name] for row in encoded], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
        # A dummy tile keeps all ranks of a sharded run in the vision encoder; its flag keeps it out of the text.
        tiles = [row["pixel_values"] for row in encoded if "pixel_values" in row]
        pixel_values = torch.cat(tiles) if tiles else torch.zeros(1, 3, self.tile_size, self.tile_size)
        return batch | {
            "pixel_values": pixel_values,
            "image_flags": torch.full((len(pixel_values),), int(bool(tiles))),
        }

    def encode(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Encode one conversation.

        Args:
            row: See `__call__`.

        Returns:
            `input_ids`, `attention_mask` and `labels` (seq,), and with images `pixel_values`.

        Raises:
            ValueError: See `__call__`.
        """
        turns, images, reader = self._read(row)
        tiles, num_tiles = self.processor.tiles_of([images], self.settings, reader) if images else (None, [])
        ids, labels = self._ids(turns, [int(count) for count in num_tiles])
        input_ids = torch.tensor(ids)
        row = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": torch.tensor(labels)}
        return row | ({} if tiles is None else {"pixel_values": tiles})

    def length(self, row: dict[str, Any]) -> int:
        """Count the tokens of a conversation, those of its images included, without decoding them; videos are decoded.

        Args:
            row: See `__call__`.

        Returns:
            The length of what `encode` gives.

        Raises:
            ValueError: See `__call__`.
        """
        turns, images, reader = self._read(row)
        num_tiles = self.processor.count_tiles(images, self.settings, reader) if images else []
        return len(self._ids(turns, num_tiles)[0])

    def _ids(self, turns: Sequence[Turn], num_tiles: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return ids and labels of a conversation."""
        pieces = PromptEncoder(self.processor.tokenizer).encode(
            self.processor.prompt_format,
            turns,
            num_tiles,
            self.tile_tokens,
            system=self.processor.system_message,
            awaits_answer=False,
            trusts_answers=self.control_tokens,
        )
        # Only answers are learned: the other pieces are what the user, the system and the format contribute.
        labels = (piece.ids if piece.kind == "answer" else [IGNORED_LABEL] * len(piece.ids) for piece in pieces)
        return ids_of(pieces), [label for piece_labels in labels for label in piece_labels]

    def _read(self, row: dict[str, Any]) -> tuple[list[Turn], list[tuple[Any, int]], MediaReader]:
        """Return the turns up to the last answer, their images in order with their `max_tiles`, and what reads them.

        A conversation is a call in the sense of the media policy.
        """
        messages = _learned_messages(row)
        visuals = _visuals_in_order(row, messages)
        limits = self.processor.limited([one for kind, one in visuals if kind == "image"], self.settings)
        stills, shown, counts = iter(limits), [], []  # counts: frames of each video, 0 for an image
        reader = self.processor.image_processor.media_reader(len(limits))
        check_images([image for image, _ in limits], reader)
        check_videos([one for kind, one in visuals if kind == "video"], reader)
        for index, (kind, visual) in enumerate(visuals):
            is_video = kind == "video"
            frames = []
            if is_video:
                frames = self.processor.limited_frames(visual, f"videos[{index}]", self.num_frames, reader)
            counts.append(len(frames))
            shown += frames or [next(stills)]
        style, frames_of_each = self.processor.prompt_format, iter(counts)
        return [_turn(style, role, items, frames_of_each) for role, items in messages], shown, reader


def _learned_messages(row: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """Return role and items of each message up to the last answer: text, "image" and "video" with what they name.

    The row stays as it is.
    """
    if not isinstance(row, Mapping):
        raise TypeError(f"A row is {shortened(row)}; expected a dict with messages, as the rows of a data set are.")
    if not isinstance(row.get("messages"), (list, tuple)):
        raise ValueError(
            f"A row has {', '.join(row)}; expected messages, a list of dicts with role and content. InternVL's own "
            "files with conversations are read by training.conversations.read_conversations."
        )
    if not all(isinstance(message, Mapping) for message in row["messages"]):
        raise ValueError(f"A row's messages are {shortened(row['messages'])}; expected dicts with role and content.")
    messages = [(one["role"], read_content(one.get("content"))) for one in checked_messages(row["messages"])]
    # The official preprocessing drops answers before the first question: there is nothing that they answer.
    asked = [index for index, (role, _) in enumerate(messages) if role not in ("system", "assistant")]
    begins = min(asked, default=len(messages))
    messages = [one for index, one in enumerate(messages) if index >= begins or one[0] == "system"]
    # What follows the last answer gives no loss, and would cost time and memory.
    last = max((index for index, (role, _) in enumerate(messages) if role == "assistant"), default=None)
    if last is None:
        raise ValueError(f"No message of {len(messages)} has the role assistant, so there is nothing to learn.")
    return messages[: last + 1]


def _visuals_in_order(row: dict[str, Any], messages: list[tuple[str, list[Any]]]) -> list[tuple[str, Any]]:
    """Return kind and source of each image and video; placeholders typed in questions become items of `messages`."""
    # Where images are items, a typed placeholder is text, as in messages; else it marks an image that is given apart.
    waiting = {kind: _given_apart(row, kind) for kind in PLACEHOLDERS}
    literal = literal_placeholders(items for _, items in messages)
    typed = [kind for kind, placeholder in PLACEHOLDERS.items() if waiting[kind] and placeholder not in literal]
    for index, (role, items) in enumerate(messages):
        messages[index] = (role, _with_typed(items, typed) if role == "user" else items)
    questions = [items for role, items in messages if role == "user"]
    # Reversed, so that images come before videos where neither says where it stands.
    for kind in reversed(PLACEHOLDERS):
        if questions and not any(item["type"] == kind for _, items in messages for item in items):
            questions[0][:0] = [{"type": kind}] * len(waiting[kind])
    shown = [item for _, items in messages for item in items if item["type"] in PLACEHOLDERS]
    for kind, visuals in waiting.items():
        marked = [item for item in shown if item["type"] == kind]
        count = len(visuals) + sum(kind in item for item in marked)
        if count != len(marked):
            raise ValueError(
                f"There are {count} {kind}s for {len(marked)} placeholders before the last answer; give one {kind} "
                f"item for each, or write {PLACEHOLDERS[kind]} once for each in a question, where it stands."
            )
    rest = {kind: iter(visuals) for kind, visuals in waiting.items()}
    return [(item["type"], item.get(item["type"]) or next(rest[item["type"]])) for item in shown]


def _given_apart(row: dict[str, Any], kind: str) -> list[Any]:
    """Return the images or videos of a row that stand beside its messages, without the None of rows without any."""
    # One cell may be an array or a dict with bytes and path, which are iterable, and still one image.
    given = row.get(f"{kind}s") if row.get(kind) is None else row[kind]
    given = given if isinstance(given, (list, tuple)) else [given]
    return [visual for visual in given if visual is not None]


def _with_typed(items: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return items in which the placeholders of these kinds, typed in text, are items."""
    for kind in kinds:
        split = []
        for item in items:
            texts = split_at(PLACEHOLDERS[kind], item["text"]) if item["type"] == "text" else ()
            parts = [
                {"type": kind, "typed": True} if text is None else {"type": "text", "text": text} for text in texts
            ]
            split += parts or [item]
        items = split
    return list(items)


def _turn(style: PromptFormat, role: str, items: Sequence[dict[str, Any]], frames: Iterator[int]) -> Turn:
    """Write a message as a turn: an image item ends its line, a video is a line for each frame."""
    parts: list[str | None] = []
    for item in items:
        if item["type"] == "text":
            parts.append(item["text"])
            continue
        count = next(frames)  # 0 for an image
        for index in range(1, count + 1):
            parts += [("\n" if index > 1 else "") + style.frame.format(index), None]
        parts += [] if count else [None]
        parts += [] if item.get("typed") else ["\n"]
    turn = Turn(role, tuple(parts), is_learned=role == "assistant")
    return turn if role == "system" else _stripped(turn)


def _stripped(turn: Turn) -> Turn:
    """Remove blanks around a turn."""
    # Text around placeholders is joined first: blanks beside an image within a turn are its author's.
    parts = list(turn.parts)
    joined: list[str | None] = []
    for part in parts:
        if part is not None and joined and joined[-1] is not None:
            joined[-1] += part
        else:
            joined.append(part)
    if joined and joined[0] is not None:
        joined[0] = joined[0].lstrip()
    if joined and joined[-1] is not None:
        joined[-1] = joined[-1].rstrip()
    return replace(turn, parts=tuple(joined))
