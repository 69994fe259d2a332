"""Conversations for fine-tuning: a user's JSONL lines as tokens with labels, and batches of them.

Only answers are learned, each up to and including the token that ends it. A conversation is encoded piece by piece,
prompt and answer in turn, so that an answer's tokens are those that generation would have to give after that prompt.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import ProcessorMixin


logger = logging.getLogger(__name__)
IGNORED = -100
PLACEHOLDER, EMPTY_PLACES = "<image>", "<img></img>"
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass
class Conversation:
    """One line of a file.

    Attributes:
        messages: Messages as the chat template takes them.
        images: What the image processor reads, in the order of the places in the messages.
        origin: File and line, for error messages.
    """

    messages: list[dict[str, Any]]
    images: list[Any]
    origin: str


def read_conversations(file: Path, image_folder: Path | None = None) -> Iterator[Conversation]:
    """Read a JSONL file.

    A line has `messages` (`role` and `content`, the latter text or a list of text and image items) or, as InternVL's
    own files, `conversations` (`from` and `value`). `<image>` marks the places of the images in `image` or `images`.

    Args:
        file: The file.
        image_folder: Where relative paths start; None means the file's folder.

    Yields:
        Conversations.

    Raises:
        ValueError: If a line is not understood.
    """
    image_folder = image_folder or file.parent
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            origin = f"{file}:{number}"
            try:
                messages, images = _parse(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{origin} is not a conversation ({type(error).__name__}: {error}); expected an object with "
                    '"messages", each with "role" and "content", or "conversations", each with "from" and "value".'
                ) from error
            yield Conversation(messages, [_located(image, image_folder) for image in images], origin)


def _parse(record: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    images = record.get("images") or record.get("image") or []
    images = list(images) if isinstance(images, list) else [images]
    if "conversations" in record:
        messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
        _place_a_single_image(messages, images)
    else:
        messages = [{"role": ROLES[turn["role"]], "content": turn["content"]} for turn in record["messages"]]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("nobody answers, so there is nothing to learn")
    items = [item for message in messages if isinstance(message["content"], list) for item in message["content"]]
    if any(item["type"] == "image" for item in items):
        listed = iter(images)
        images = [_payload(item, listed) for item in items if item["type"] == "image"] + list(listed)
    return messages, images


def _place_a_single_image(messages: list[dict[str, Any]], images: list[Any]) -> None:
    """Put a single image without a place before the first question, as InternVL's own training does."""
    questions = [message for message in messages if message["role"] == "user"]
    if len(images) == 1 and questions and not any(PLACEHOLDER in message["content"] for message in questions):
        questions[0]["content"] = f"{PLACEHOLDER}\n{questions[0]['content']}"


def _payload(item: dict[str, Any], listed: Iterator[Any]) -> Any:
    """Give the image of an item: its own, or the next one that is listed beside the messages."""
    own = next((item[name] for name in ("image", "path", "url") if item.get(name)), None)
    image = next(listed, None) if own is None else own
    if image is None:
        raise ValueError('an image item names no "image", and none is left in "images"')
    return image


def _located(image: Any, folder: Path) -> Any:
    """Resolve a relative path; URLs stay as they are."""
    is_path = isinstance(image, str) and not image.startswith(("http://", "https://", "file://", "data:"))
    return str(folder / image) if is_path else image


class ConversationEncoder:
    """Turns conversations into tokens, labels and tiles.

    Args:
        processor: The checkpoint's processor.
        max_tiles: Largest number of tiles of an image; None means the processor's own.
    """

    def __init__(self, processor: ProcessorMixin, max_tiles: int | None = None) -> None:
        self.processor = processor
        self.settings = {} if max_tiles is None else {"max_tiles": max_tiles}

    def __call__(self, conversation: Conversation) -> dict[str, Any]:
        """Encode a conversation.

        Args:
            conversation: The conversation; what follows its last answer is left out.

        Returns:
            `input_ids`, `labels` and `loss_weight` (length,), the latter 1/sqrt(length) inside an answer; and
            `pixel_values` (tiles, 3, tile_size, tile_size), or None without images.

        Raises:
            ValueError, TypeError, OSError: If images and places do not fit, or an image cannot be read.
        """
        ids, labels, weights, tiles = [], [], [], []
        for text, images, is_answer in self._pieces(conversation):
            encoded = self.processor(text=text, images=images or None, add_special_tokens=False, **self.settings)
            piece = list(encoded["input_ids"][0])
            ids += piece
            labels += piece if is_answer else [IGNORED] * len(piece)
            weights += [len(piece) ** -0.5 if is_answer else 0.0] * len(piece)
            tiles += [encoded["pixel_values"]] if images else []
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "loss_weight": torch.tensor(weights),
            "pixel_values": torch.cat(tiles) if tiles else None,
        }

    def length(self, conversation: Conversation) -> int:
        """Count the tokens of an encoded conversation without decoding its images."""
        length = 0
        for text, images, _ in self._pieces(conversation):
            text = text.replace(PLACEHOLDER, EMPTY_PLACES) if images else text
            length += len(self.processor(text=text, add_special_tokens=False, **self.settings)["input_ids"][0])
            length += sum(self.processor.count_image_tokens(images, **self.settings)) if images else 0
        return length

    def _pieces(self, conversation: Conversation) -> list[tuple[str, list[Any], bool]]:
        """Cut a conversation into (text, its images, whether it is an answer)."""
        texts, done = [], ""
        for index, message in enumerate(conversation.messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(conversation.messages[:index], add_generation_prompt=True)
            whole = self._render(conversation.messages[: index + 1])
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise ValueError(
                    "The chat template writes earlier messages differently once an answer follows; expected one that "
                    "only appends, so that an answer can be told from its prompt."
                )
            answer = whole[len(prompt) :].rstrip("\n")  # some templates end a line after the end token
            texts += [(prompt[len(done) :], False), (answer, True)]
            done = prompt + answer
        places = sum(text.count(PLACEHOLDER) for text, _ in texts)
        if places != len(conversation.images):
            raise ValueError(
                f"There are {len(conversation.images)} images for {places} {PLACEHOLDER} before the last answer; "
                f"write {PLACEHOLDER} in a question once for each image, where it stands."
            )
        images = iter(conversation.images)
        return [(text, list(islice(images, text.count(PLACEHOLDER))), is_answer) for text, is_answer in texts]

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )


class Conversations(Dataset):
    """Conversations that fit the model's context, encoded when they are asked for.

    Args:
        conversations: All of them; those that are too long are left out, and their number is logged.
        encoder: Encodes them.
        max_length: Largest number of tokens, those of images included.

    Raises:
        ValueError: If a conversation cannot be encoded, or none is left.
    """

    def __init__(self, conversations: Iterable[Conversation], encoder: ConversationEncoder, max_length: int) -> None:
        self.encoder = encoder
        self.conversations, self.lengths, left_out = [], [], 0
        for conversation in conversations:
            length = self._of(conversation, encoder.length)
            if length > max_length:
                left_out += 1
                continue
            self.conversations.append(conversation)
            self.lengths.append(length)
        logger.info("%d conversations, %d tokens", len(self.lengths), sum(self.lengths))
        if left_out:
            # Cutting them would leave image tokens without a picture, or answers without an end.
            logger.warning("%d conversations are longer than %d tokens and are left out.", left_out, max_length)
        if not self.conversations:
            raise ValueError(
                f"No conversation is left of {left_out}, for all are longer than {max_length} tokens: raise "
                "--max-length or lower --max-tiles."
            )

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._of(self.conversations[index], self.encoder)

    def _of(self, conversation: Conversation, encode: Callable[[Conversation], Any]) -> Any:
        try:
            return encode(conversation)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{conversation.origin}: {error}") from error


class Collator:
    """Joins encoded conversations to a batch: padded on the right, the tiles of all in one row.

    A batch without images gets a dummy tile, flagged 0: the model sends it through the vision encoder for nothing, so
    that no process waits for this one.

    Args:
        pad_token_id: Fills up `input_ids`.
        tile_size: Side of the dummy tile.
        weighted: Whether the model gets `loss_weight`.
    """

    def __init__(self, pad_token_id: int, tile_size: int, weighted: bool = False) -> None:
        self.tile_size = tile_size
        self.padding = {"input_ids": pad_token_id, "labels": IGNORED}
        if weighted:
            self.padding["loss_weight"] = 0.0

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Join samples.

        Args:
            samples: What `ConversationEncoder` gives.

        Returns:
            `input_ids`, `labels`, `attention_mask` and perhaps `loss_weight` (batch, length), `pixel_values` (tiles,
            3, tile_size, tile_size) and `image_flags` (tiles,).
        """
        batch = {
            name: pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)
            for name, value in self.padding.items()
        }
        masks = [torch.ones_like(sample["input_ids"]) for sample in samples]
        batch["attention_mask"] = pad_sequence(masks, batch_first=True)
        tiles = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
        pixel_values = torch.cat(tiles) if tiles else torch.zeros(1, 3, self.tile_size, self.tile_size)
        flags = torch.full((len(pixel_values),), int(bool(tiles)))
        return batch | {"pixel_values": pixel_values, "image_flags": flags}
