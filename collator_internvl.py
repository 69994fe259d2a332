"""Conversations as training batches: the loss is on the answers, whatever the number of turns and images.

`processor.data_collator()` makes one; it goes where trainers take a `data_collator`. It needs no trainer itself.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from .prompt_internvl import IMAGE_PLACEHOLDER


IGNORED_LABEL = -100
# Under which names a message's image item may hold its image, see Transformers' chat templates.
IMAGE_KEYS = ("image", "url", "path", "base64")


class ConversationCollator:
    """Turns conversations into batches whose labels are the answers, each with the token that ends it.

    Prompt and answer are encoded piece by piece, so that an answer's tokens are those that generation would have to
    give after its prompt. A batch without images gets a dummy tile, flagged 0: the model sends it through the vision
    encoder for nothing, so that no process of a distributed run waits for this one.

    Args:
        processor: The checkpoint's processor.
        **settings: Settings of the image processor, such as `max_tiles`.
    """

    def __init__(self, processor: ProcessorMixin, **settings: Any) -> None:
        self.processor = processor
        self.settings = settings
        self.tile_size = processor.image_processor.plan((1, 1), **settings).tile_size

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Join conversations to a batch, padded on the right.

        Args:
            rows: Each has `messages`, with images in their items or apart, in `images` (or a single `image`), in the
                order of the places for them: image items without an image, `<image>` in the text of messages that
                have no image items; where there is neither, all stand before the first question.

        Returns:
            `input_ids`, `attention_mask` and `labels` (rows, seq); `pixel_values` (tiles, 3, tile_size, tile_size) and
            `image_flags` (tiles,).

        Raises:
            ValueError: If images and places do not fit, or there is no answer to learn.
        """
        encoded = [self.encode(row) for row in rows]
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
        messages, images = _with_images_apart(row)
        waiting = iter(images)
        ids, labels, tiles = [], [], []
        pieces = self._pieces(messages)
        places = sum(text.count(IMAGE_PLACEHOLDER) for text, _ in pieces) if images else 0
        if places != len(images):
            raise ValueError(
                f"There are {len(images)} images for {places} places before the last answer; give one image item for "
                f"each, or write {IMAGE_PLACEHOLDER} once for each in a question, where it stands."
            )
        for text, is_answer in pieces:
            shown = list(islice(waiting, text.count(IMAGE_PLACEHOLDER)))
            encoded = self.processor(text=text, images=shown or None, add_special_tokens=False, **self.settings)
            piece = list(encoded["input_ids"][0])
            ids += piece
            labels += piece if is_answer else [IGNORED_LABEL] * len(piece)
            tiles += [encoded["pixel_values"]] if shown else []
        input_ids = torch.tensor(ids)
        row = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": torch.tensor(labels)}
        return row | ({"pixel_values": torch.cat(tiles)} if tiles else {})

    def _pieces(self, messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
        """Write a conversation as prompts and answers in turn, and say which is which; nothing after the last."""
        pieces, written = [], ""
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
            pieces += [(prompt[len(written) :], False), (answer, True)]
            written = prompt + answer
        if not pieces:
            raise ValueError(f"No message of {len(messages)} has the role assistant, so there is nothing to learn.")
        return pieces

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )


def _with_images_apart(row: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return messages whose image items are mere places, and the images in their order; the row stays as it is."""
    waiting = iter([row["image"]] if row.get("image") is not None else row.get("images") or ())
    messages, images = [], []
    for message in row["messages"]:
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images += [_image_of(item, waiting) for item in items if item["type"] == "image"]
        items = [{"type": "image"} if item["type"] == "image" else item for item in items]
        messages.append({**message, "content": items})
    questions = [message for message in messages if message["role"] == "user"]
    typed = any(IMAGE_PLACEHOLDER in (item.get("text") or "") for message in questions for item in message["content"])
    rest = list(waiting)
    if questions and not images and not typed:
        questions[0]["content"] = [{"type": "image"}] * len(rest) + questions[0]["content"]
    return messages, images + rest


def _image_of(item: dict[str, Any], waiting: Iterator[Any]) -> Any:
    """Return an image item's image: its own, else the next of those that were given apart."""
    own = [item[key] for key in IMAGE_KEYS if item.get(key) is not None]
    image = own[0] if own else next(waiting, None)
    if image is None:
        raise ValueError("There are more image items than images; give an image for each of them.")
    return image
