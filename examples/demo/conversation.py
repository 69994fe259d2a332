"""What one browser tab holds: pictures, how they are cut, and a session with the model; nothing of the page."""

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from examples.demo.drawing import on_screen, upright
from examples.demo.limits import MAX_QUESTION, MAX_TURNS


# The image processor's; "auto" is what the checkpoint's own folder says, 12 tiles for InternVL 1.5.
RESOLUTIONS = ("low", "auto", "high")
IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        path: Its file.
        name: What the file is called.
        image: The picture as a person sees it, RGB, in a size for the screen: a page holds many.
        plan: Its tile plan.
        tile_tokens: Image tokens of one tile.
    """

    path: str
    name: str
    image: Image.Image
    plan: Any
    tile_tokens: int


class Conversation:
    """Pictures and what is said about them.

    Attributes:
        pictures: The pictures that can be read, in order.
        broken: What is wrong with each of the others, by the name of its file.
    """

    def __init__(self, model: Any, processor: Any, paths: Sequence[str] = (), resolution: str = "auto") -> None:
        self.pictures: list[Picture] = []
        self.broken: dict[str, str] = {}
        self._processor = processor
        self._settings = {"resolution": resolution}
        self._session = model.start_chat(processor.tokenizer)
        self._is_answering = self._is_stopped = self._is_closed = False
        for path in self._allowed(paths):
            self._add(path)

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being made."""
        return self._is_answering

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer as far as it is made; `stop` ends it early.

        Args:
            question: The question. The first one is about all pictures: where there are several, they are introduced
                as Image-1, Image-2 and so on, unless the question itself says with `<image>` where each stands.

        Yields:
            The answer's beginning, longer each time.

        Raises:
            ValueError: If `<image>` in the question does not fit the pictures, the conversation is closed, or question
                or conversation are too long.
        """
        if len(question) > MAX_QUESTION:
            raise ValueError(f"The question has {len(question)} characters; expected {MAX_QUESTION} at most.")
        if len(self._session.history) >= MAX_TURNS:
            raise ValueError(f"The conversation has {MAX_TURNS} turns, and more are not kept; start a new one.")
        self._is_answering, self._is_stopped = True, False
        answer = ""
        try:
            with closing(self._start(question)) as pieces:  # what was said until it closes is in the session's history
                for piece in pieces:
                    answer += piece
                    yield answer
                    if self._is_stopped:
                        break
        finally:
            self._is_answering = False
            if self._is_closed:
                self._session.close()

    def stop(self) -> None:
        """End the answer that is being made after its next token."""
        self._is_stopped = True

    def close(self) -> None:
        """Free the model's memory of this conversation, at once or as soon as an answer in progress has ended."""
        self._is_stopped = self._is_closed = True
        if not self._is_answering:
            self._session.close()

    def draw_boxes(self, question: str, answer: str) -> Image.Image | None:
        """Draw the boxes of an answer.

        Args:
            question: What was asked.
            answer: What was answered.

        Returns:
            The picture with the boxes: of several the one that the answer or the question names (Image-2), else the
            first. None if there is no box or no picture.
        """
        if not self.pictures:
            return None
        numbers = [int(number) for number in re.findall(r"Image-(\d{1,3})\b", f"{answer} {question}")]
        number = next((number for number in numbers if 1 <= number <= len(self.pictures)), 1)
        image = self.pictures[number - 1].image
        (grounding,) = self._processor.post_process_grounding(answer, image.size)
        return grounding.draw(image) if grounding.regions else None

    def _allowed(self, paths: Sequence[str]) -> Sequence[str]:
        """Return the files if there are not too many of them, else none."""
        try:
            self._processor.image_processor.media_reader(len(paths))
        except ValueError as error:
            self.broken[Path(paths[-1]).name] = str(error)
            return ()
        return paths

    def _add(self, path: str) -> None:
        """Read a picture, or note what is wrong with it."""
        try:
            self.pictures.append(self._read(path))
        except (OSError, ValueError) as error:
            self.broken[Path(path).name] = str(error)

    def _read(self, path: str) -> Picture:
        # One tile is soon made and needs the whole file, so it finds all that can be wrong with it.
        self._processor.image_processor(path, resolution="low")
        plan = self._processor.image_processor.plan(path, **self._settings)
        (num_tokens,) = self._processor.count_image_tokens(path, **self._settings)
        (opened,) = self._processor.image_processor.fetch_images([path])
        image = on_screen(upright(opened))
        return Picture(path, Path(path).name, image, plan, num_tokens // plan.num_tiles)

    def _start(self, question: str) -> Iterator[str]:
        """Start the answer; the first question brings the pictures."""
        if not self.pictures or self._session.history:
            return self._session.stream(question)
        if len(self.pictures) > 1 and IMAGE_PLACEHOLDER not in question:
            places = [f"Image-{number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, len(self.pictures) + 1)]
            question = "".join([*places, question])
        tiles = self._processor.image_processor([picture.path for picture in self.pictures], **self._settings)
        counts = tiles["num_patches"].tolist()
        return self._session.stream(question, pixel_values=tiles["pixel_values"], num_patches_list=counts)
