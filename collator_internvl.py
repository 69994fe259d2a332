"""Conversations as training batches: the loss is on the answers, whatever the number of turns and images.

`processor.data_collator()` makes one; it goes where trainers take a `data_collator`. It needs no trainer itself.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from .messages_internvl import read_content
from .prompt_internvl import IMAGE_END_TOKEN, IMAGE_PLACEHOLDER, IMAGE_START_TOKEN, VIDEO_PLACEHOLDER
from .tiling_internvl import tokens_per_tile


IGNORED_LABEL = -100


class ConversationCollator:
    """Turns conversations into batches whose labels are the answers, each with the token that ends it.

    Prompt and answer are encoded piece by piece, so that an answer's tokens are those that generation would have to
    give after its prompt. A batch without images gets a dummy tile, flagged 0: the model sends it through the vision
    encoder for nothing, so that no process of a distributed run waits for this one.

    `length` measures a conversation without decoding its images; `encode` and `join` are the two halves of a call.

    Args:
        processor: The checkpoint's processor.
        **settings: Settings of the image processor, such as `max_tiles`.
    """

    def __init__(self, processor: ProcessorMixin, **settings: Any) -> None:
        self.processor = processor
        self.settings = settings
        self.tile_size = processor.image_processor.plan((1, 1), **settings).tile_size
        side, patch_size, factor = self.tile_size, processor.patch_size, processor.downsample_factor
        self.tile_tokens = tokens_per_tile(side, side, patch_size, factor)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Join conversations to a batch, padded on the right.

        Args:
            rows: Each has `messages`, as the processor's `apply_chat_template` takes them, with images in their items
                or apart, in `images` (or a single `image`), in the order of the places for them: image items without
                an image, `<image>` in the text of messages that have no image items; where there is neither, all stand
                before the first question. Videos stand in their items.

        Returns:
            `input_ids`, `attention_mask` and `labels` (rows, seq); `pixel_values` (tiles, 3, tile_size, tile_size) and
            `image_flags` (tiles,).

        Raises:
            ValueError: If images and places do not fit, there is no answer to learn or a picture in one, or the
                pictures of several turns have more tiles than `total_max_tiles`.
        """
        return self.join([self.encode(row) for row in rows])

    def join(self, encoded: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Join conversations that are encoded already, as a data set may do with `encode`.

        Args:
            encoded: What `encode` gives for each.

        Returns:
            See `__call__`.
        """
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED_LABEL}
        batch = {
            name: pad_sequence([row[name] for row in encoded], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
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
        ids, labels, tiles = [], [], []
        for piece, is_answer in self._pieces(row):
            encoded = self.processor(**piece, add_special_tokens=False, **self.settings)
            piece_ids = list(encoded["input_ids"][0])
            ids += piece_ids
            labels += piece_ids if is_answer else [IGNORED_LABEL] * len(piece_ids)
            tiles += [encoded["pixel_values"]] if "pixel_values" in encoded else []
        self._check_total(sum(map(len, tiles)))
        input_ids = torch.tensor(ids)
        row = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": torch.tensor(labels)}
        return row | ({"pixel_values": torch.cat(tiles)} if tiles else {})

    def length(self, row: dict[str, Any]) -> int:
        """Count the tokens of a conversation, those of its images included, without decoding them; videos are decoded.

        Args:
            row: See `__call__`.

        Returns:
            The length of what `encode` gives.

        Raises:
            ValueError: See `__call__`.
        """
        length = num_tiles = 0
        for piece, _ in self._pieces(row):
            if piece["images"] and not piece["videos"]:
                image_tokens = sum(self.processor.count_image_tokens(piece["images"], **self.settings))
                length += image_tokens
                num_tiles += image_tokens // self.tile_tokens
                piece = {"text": piece["text"].replace(IMAGE_PLACEHOLDER, IMAGE_START_TOKEN + IMAGE_END_TOKEN)}
            encoded = self.processor(**piece, add_special_tokens=False, **self.settings)
            length += len(encoded["input_ids"][0])
            num_tiles += len(encoded.get("pixel_values", ()))
        self._check_total(num_tiles)
        return length

    def _pieces(self, row: dict[str, Any]) -> list[tuple[dict[str, Any], bool]]:
        """Cut a conversation into pieces, what the processor encodes of each, and say which are answers."""
        messages, images, clips = _with_visuals_apart(row)
        texts = self._texts(messages)
        _check_places([text for text, _ in texts], images, clips)
        images, clips, pieces = iter(images), iter(clips), []
        for text, is_answer in texts:
            shown = list(islice(images, text.count(IMAGE_PLACEHOLDER))) or None
            played = list(islice(clips, text.count(VIDEO_PLACEHOLDER))) or None
            if is_answer and (shown or played):
                raise ValueError("An answer has a picture, which no model could learn to say; expected text alone.")
            pieces.append(({"text": text, "images": shown, "videos": played}, is_answer))
        return pieces

    def _texts(self, messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
        """Write a conversation as prompts and answers in turn, and say which is which; nothing after the last."""
        texts, written = [], ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], add_generation_prompt=True)
            whole = self._render(messages[: index + 1])
            if not (prompt.startswith(written) and whole.startswith(prompt)):
                raise ValueError(
                    "The chat template writes a prompt differently once its answer follows; expected one that only "
                    "appends, so that answers can be told from prompts. Use the checkpoint's own template."
                )
            answer = whole[len(prompt) :].rstrip("\n")  # some templates end the line after the token that ends a turn
            texts += [(prompt[len(written) :], False), (answer, True)]
            written = prompt + answer
        if not texts:
            raise ValueError(f"No message of {len(messages)} has the role assistant, so there is nothing to learn.")
        return texts

    def _check_total(self, num_tiles: int) -> None:
        """Refuse what the budget forbids: it is shared out within a turn, and turns do not know of each other."""
        total = self.settings.get("total_max_tiles") or self.processor.image_processor.total_max_tiles
        if total is not None and num_tiles > total:
            raise ValueError(
                f"The pictures of a conversation have {num_tiles} tiles, but total_max_tiles is {total}, which was "
                "shared out in each turn alone: lower max_tiles."
            )

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )


def _with_visuals_apart(row: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    """Return messages whose image and video items are mere places, the images and the videos in their order.

    The row stays as it is.
    """
    waiting = iter([row["image"]] if row.get("image") is not None else row.get("images") or ())
    messages, visuals = [], {"image": [], "video": []}
    for message in row["messages"]:
        items = read_content(message["content"])
        for item in items:
            if item["type"] in visuals:
                given_apart = waiting if item["type"] == "image" else iter(())
                visuals[item["type"]].append(_visual_of(item, given_apart))
        items = [{"type": item["type"]} if item["type"] in visuals else item for item in items]
        messages.append({**message, "content": items})
    images, clips = visuals["image"], visuals["video"]
    questions = [message for message in messages if message["role"] == "user"]
    typed = any(IMAGE_PLACEHOLDER in (item.get("text") or "") for message in questions for item in message["content"])
    rest = list(waiting)
    if questions and not images and not typed:
        questions[0]["content"] = [{"type": "image"}] * len(rest) + questions[0]["content"]
    return messages, images + rest, clips


def _visual_of(item: dict[str, Any], waiting: Iterator[Any]) -> Any:
    """Return what an image or video item shows: its own, else the next of those that were given apart."""
    kind = item["type"]
    visual = item.get(kind)
    visual = next(waiting, None) if visual is None else visual
    if visual is None:
        raise ValueError(f"There are more {kind} items than {kind}s; give the {kind} in each of them.")
    return visual


def _check_places(texts: Sequence[str], images: Sequence[Any], clips: Sequence[Any]) -> None:
    """Make sure that each image and each video has a place; without any, `<image>` and `<video>` are text."""
    for kind, visuals, placeholder in (("image", images, IMAGE_PLACEHOLDER), ("video", clips, VIDEO_PLACEHOLDER)):
        places = sum(text.count(placeholder) for text in texts) if visuals else 0
        if places != len(visuals):
            raise ValueError(
                f"There are {len(visuals)} {kind}s for {places} places before the last answer; give one {kind} item "
                f"for each, or write {placeholder} once for each in a question, where it stands."
            )
