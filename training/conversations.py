"""The user's JSONL files of conversations, read, and measured before the run.

How a conversation becomes tokens with labels, and several a batch, is known to the package's data collator alone.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset


logger = logging.getLogger(__name__)
PLACEHOLDERS = {"image": "<image>", "video": "<video>"}
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def read_conversations(file: Path, image_folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """Read a JSONL file.

    A line has `messages` (`role` and `content`, the latter text or a list of text, image and video items) or, as
    InternVL's own files, `conversations` (`from` and `value`). `<image>` marks the places of the images in `image` or
    `images`, `<video>` those of the clips in `video` or `videos`; where none is marked, they stand before the first
    question.

    Args:
        file: The file.
        image_folder: Where relative paths start; None means the file's folder.

    Yields:
        Rows for the processor's data collator, `messages`, `images` and `videos`; and `origin`, file and line, for
        errors.

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
                yield {"origin": origin, **_parse(json.loads(line), image_folder)}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{origin} is not a conversation ({type(error).__name__}: {error}); expected an object with "
                    '"messages", each with "role" and "content", or "conversations", each with "from" and "value".'
                ) from error


def _parse(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    visuals = {f"{kind}s": _visuals(record, kind, folder) for kind in PLACEHOLDERS}
    if "conversations" in record:
        messages = [{"role": _role(turn["from"]), "content": turn["value"]} for turn in record["conversations"]]
    else:
        messages = [{"role": _role(turn["role"]), "content": turn["content"]} for turn in record["messages"]]
    items = [item for message in messages if isinstance(message["content"], list) for item in message["content"]]
    for item in items:
        item.update({key: _located(item[key], folder) for key in ("image", "video", "path", "url") if item.get(key)})
    asked = [str(message["content"]) for message in messages if message["role"] == "user"]
    for kind, placeholder in PLACEHOLDERS.items():
        is_marked = any(placeholder in text for text in asked) and all(item["type"] == "text" for item in items)
        if is_marked and not visuals[f"{kind}s"]:
            article = "an" if kind == "image" else "a"
            raise ValueError(f"{placeholder} marks the place of {article} {kind}, but there is none")
    return {"messages": messages, **visuals}


def _visuals(record: dict[str, Any], kind: str, folder: Path) -> list[Any]:
    """Return the images or videos that stand beside the messages."""
    visuals = record.get(f"{kind}s") or record.get(kind) or []
    return [_located(visual, folder) for visual in (visuals if isinstance(visuals, list) else [visuals])]


def _role(name: str) -> str:
    if name not in ROLES:
        raise ValueError(f"found role {name!r}, expected one of {', '.join(ROLES)}")
    return ROLES[name]


def _located(source: Any, folder: Path) -> Any:
    """Resolve a relative path; URLs stay as they are."""
    is_path = isinstance(source, str) and not source.startswith(("http://", "https://", "file://", "data:"))
    return str(folder / source) if is_path else source


class Conversations(Dataset):
    """Conversations that fit the model's context, encoded when they are asked for.

    Args:
        rows: All of them; those that are too long are left out, and their number is logged.
        collator: The processor's data collator, which encodes them.
        max_length: Largest number of tokens, those of images included.

    Raises:
        ValueError: If a conversation cannot be encoded, or none is left.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], collator: Any, max_length: int) -> None:
        self.collator = collator
        self.rows, self.lengths, left_out = [], [], 0
        for row in rows:
            length = self._of(row, collator.length)
            if length > max_length:
                left_out += 1
                continue
            self.rows.append(row)
            self.lengths.append(length)
        logger.info("%d conversations, %d tokens", len(self.lengths), sum(self.lengths))
        if left_out:
            # Cutting them would leave image tokens without a picture, or answers without an end.
            logger.warning("%d conversations are longer than %d tokens and are left out.", left_out, max_length)
        if not self.rows and not left_out:
            raise ValueError("The data files hold no conversation; expected one JSON object per line.")
        if not self.rows:
            raise ValueError(
                f"No conversation is left of {left_out}, for all are longer than {max_length} tokens: raise "
                "--max-length or lower --max-tiles."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._of(self.rows[index], self.collator.encode)

    def _of(self, row: dict[str, Any], encode: Callable[[dict[str, Any]], Any]) -> Any:
        try:
            return encode(row)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{row['origin']}: {error}") from error
