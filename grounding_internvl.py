"""Boxes in answers: `<ref>label</ref><box>[[x1,y1,x2,y2]]</box>` to labels and pixels, back, and onto the picture.

Coordinates in text are thousandths of the whole picture's width and height, whatever its tiles: the model was trained
on the original picture's proportions. No tensors here, and pictures only to be drawn on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .image_loading_internvl import open_picture, to_rgb
from .media_internvl import LOCAL_POLICY, MediaPolicy, MediaReader
from .tiling_internvl import checked_size, is_size


STEPS = 1000  # coordinates run from 0 to this
Box = tuple[float, float, float, float]
Corners = tuple[tuple[float, float], ...]
# How many numbers each tag's brackets hold.
NUMBERS = {"box": 4, "quad": 8}

# A tagged part up to its end tag, up to the next tag if that is missing, or a lone end tag.
TAGGED = re.compile(r"<(ref|box|quad)>(.*?)(</\1>|(?=</?(?:ref|box|quad)>)|\Z)|</(?:ref|box|quad)>", re.DOTALL)
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
NUMBER = re.compile(r"\s*\d+(?:\.\d+)?\s*")
COMMA = re.compile(r"[,，、]")  # Chinese answers may write Chinese ones
# What a tokenizer leaves of a box when it drops special tokens.
BARE_BOX = re.compile(r"\[\[[\d\s.,，、]+\](?:\s*[,，、]\s*\[[\d\s.,，、]+\])*\]")

# Distinct on photographs; one for each label, in the order of their appearance.
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")


@dataclass(frozen=True)
class Region:
    """A place in a picture that an answer names.

    Attributes:
        label: What stands in the `<ref>` directly before it; None without one.
        box: (left, top, right, bottom) in pixels of the original picture; around `corners` if there are any.
        corners: The four (x, y) of a `<quad>` in pixels, in the order of the answer; None for a `<box>`.
    """

    label: str | None
    box: Box
    corners: Corners | None = None


@dataclass(frozen=True)
class Grounding:
    """What an answer says about places in a picture.

    Attributes:
        text: The answer without boxes and tags; labels stay.
        regions: One entry for each box or quad, in order.
        problems: What could not be read, a sentence each: nothing is dropped without one. Empty if all is well.
        image_size: Size (width, height) of the picture in pixels.
        apply_exif_orientation: Whether that is the size of the upright picture, EXIF data applied.
        media_policy: What `draw` may read; the image processor's.
    """

    text: str
    regions: list[Region]
    problems: list[str]
    image_size: tuple[int, int]
    apply_exif_orientation: bool = True
    media_policy: MediaPolicy = field(default=LOCAL_POLICY, repr=False, compare=False)

    def draw(self, image: Any, font: Any = None) -> Image.Image:
        """Draw the regions on a copy of their picture, one colour for each label.

        Args:
            image: The picture, in any form that the image processor reads; turned as it was for the model, it has the
                size that the regions refer to.
            font: A PIL font for the labels. PIL's own has only Latin letters: without a font, any other label is
                written as its number among the regions, "#1" the first.

        Returns:
            An RGB picture, upright unless the model saw it otherwise.

        Raises:
            ValueError, TypeError, OSError: If the picture has another size or cannot be read, or the font is none.
        """
        if font is not None and not hasattr(font, "getbbox"):
            raise TypeError(f"font is {font!r}, expected a PIL font such as ImageFont.truetype(path, 24).")
        canvas = to_rgb(
            open_picture(image, "image", reader=MediaReader(self.media_policy)),
            "image",
            apply_exif_orientation=self.apply_exif_orientation,
            composite_alpha=True,
            rescale_depth=True,
        ).copy()
        if canvas.size != self.image_size:
            raise ValueError(
                f"The picture is {canvas.size} pixels (width, height), but the regions are for {self.image_size}: "
                "give post_process_grounding the picture that you draw on."
            )
        painter, unit = ImageDraw.Draw(canvas), max(2, round(min(canvas.size) / 200))
        labels = list(dict.fromkeys(region.label for region in self.regions))
        for number, region in enumerate(self.regions, 1):
            colour = COLOURS[labels.index(region.label) % len(COLOURS)]
            outline = region.corners or _corners(region.box)
            # The first two corners once more: a joint at every corner, the first included.
            painter.line([*outline, *outline[:2]], fill=colour, width=unit, joint="curve")
            label = region.label or ""
            if font is None and not label.isascii():
                label = f"#{number}"
            _write_label(canvas, label, region.box, colour, font or _default_font(7 * unit))
        return canvas


class GroundingMixin:
    """Grounding for a processor with `image_processor` and `post_process_image_text_to_text`."""

    def post_process_grounding(
        self, answers: Any, image_sizes: Any, apply_exif_orientation: bool | None = None
    ) -> list[Grounding]:
        """Read labels and boxes from answers, as pixels of the original pictures.

        Args:
            answers: One text or several, with their tags, as `chat` gives them; or new token ids `(batch, seq)` or
                `(seq,)`, as `generate` gives them after the prompt.
            image_sizes: The picture's size (width, height) in pixels, or the picture itself, in any form that the
                image processor reads; one for all answers, or a list with one for each. A photograph's size is that of
                the upright picture.
            apply_exif_orientation: As in the call that showed the picture; None means the image processor's setting.

        Returns:
            One `Grounding` for each answer.

        Raises:
            ValueError: If there are not as many sizes as answers, or one is no size or no picture.
        """
        if isinstance(answers, str):
            answers = [answers]
        elif not (isinstance(answers, Sequence) and all(isinstance(answer, str) for answer in answers)):
            answers = self.post_process_image_text_to_text(answers)
        is_list = isinstance(image_sizes, list) and not is_size(image_sizes)
        sizes = image_sizes if is_list else [image_sizes] * len(answers)
        if len(sizes) != len(answers):
            raise ValueError(f"There are {len(sizes)} image sizes for {len(answers)} answers; give one for each.")
        if apply_exif_orientation is None:
            apply_exif_orientation = self.image_processor.apply_exif_orientation
        turned = {"apply_exif_orientation": apply_exif_orientation}
        sizes = [self.image_processor.upright_size(size, **turned) for size in sizes]
        turned["media_policy"] = self.image_processor.media_policy
        return [replace(parse_grounding(*one), **turned) for one in zip(answers, sizes, strict=True)]

    def grounding_text(
        self, boxes: Any, image_size: Any, label: str | None = None, apply_exif_orientation: bool | None = None
    ) -> str:
        """Write pixel boxes as the model reads and writes them, for prompts and for training.

        Args:
            boxes: One box (left, top, right, bottom) in pixels of the upright picture, or several, as lists, arrays or
                tensors; four corners (x, y) instead of a box make a quad.
            image_size: As in `post_process_grounding`, of one picture.
            label: What the boxes show; None writes no `<ref>`.
            apply_exif_orientation: As in `post_process_grounding`.

        Returns:
            `<ref>label</ref><box>[[x1,y1,x2,y2]]</box>`; several boxes share the tag.

        Raises:
            ValueError: If a box is not within the picture, or the label is empty or holds a tag.
        """
        size = self.image_processor.upright_size(image_size, apply_exif_orientation=apply_exif_orientation)
        return format_grounding(boxes, size, label)


def parse_grounding(answer: str, image_size: tuple[int, int]) -> Grounding:
    """Read the tags of an answer.

    A label holds for the boxes that follow it directly; blanks, commas and colons may stand between. A region is given
    only if its numbers are whole: as many as there must be, between 0 and 1000, right not left of left, bottom not
    above top. Everything else is a problem, and so are tags without their partner, labels without boxes, and boxes
    without tags; what is whole beside it is given all the same.

    Args:
        answer: Text with its tags.
        image_size: Size (width, height) of the picture in pixels.

    Returns:
        Text, regions and problems.

    Raises:
        ValueError: If the size is none.
    """
    reader, end = _Reader(checked_size(image_size)), 0
    for match in TAGGED.finditer(answer):
        reader.plain(answer[end : match.start()])
        reader.tagged(match)
        end = match.end()
    reader.plain(answer[end:])
    reader.drop_label()
    return Grounding("".join(reader.text).strip(), reader.regions, reader.problems, reader.image_size)


@dataclass
class _Reader:
    """What was read of an answer so far."""

    image_size: tuple[int, int]
    text: list[str] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    label: str | None = None  # of the boxes to come
    is_used: bool = True  # whether a box came after it

    def plain(self, text: str) -> None:
        """Take text between tags."""
        self.text.append(text)
        self.problems += [f"{bare!r} looks like a box without its tags." for bare in BARE_BOX.findall(text)]
        if text.strip(" \n\t,:，：、"):
            self.drop_label()

    def tagged(self, match: re.Match) -> None:
        """Take a tag with what it holds."""
        tag, content, closing = match[1], match[2], match[3]
        if tag is None:
            self.problems.append(f"{match[0]} ends nothing.")
            return
        if not closing:
            self.problems.append(f"<{tag}> {content!r} does not end with </{tag}>.")
        if tag == "ref":
            self.drop_label()
            self.label, self.is_used = content.strip(), False
            self.text.append(content)
        else:
            self.is_used = True
            self._places(tag, content)

    def drop_label(self) -> None:
        """Forget the label, which must have had a box."""
        if not self.is_used:
            self.problems.append(f"<ref> {self.label!r} has no box.")
        self.label, self.is_used = None, True

    def _places(self, tag: str, content: str) -> None:
        width, height = self.image_size
        rest = BRACKETS.sub("", content).strip(" \n\t,，、[]")
        groups = BRACKETS.findall(content)
        if rest or not groups:
            self.problems.append(f"<{tag}> {content!r} is not a list such as [[x1,y1,x2,y2]].")
        for group in groups:
            numbers = COMMA.split(group)
            problem = _problem_of(tag, numbers)
            if problem:
                self.problems.append(f"<{tag}> [{group}] {problem}.")
                continue
            xs = [float(number) * width / STEPS for number in numbers[::2]]
            ys = [float(number) * height / STEPS for number in numbers[1::2]]
            corners = tuple(zip(xs, ys, strict=True)) if tag == "quad" else None
            self.regions.append(Region(self.label, (min(xs), min(ys), max(xs), max(ys)), corners))


def _problem_of(tag: str, numbers: Sequence[str]) -> str | None:
    """Say what is wrong with the numbers in a pair of brackets."""
    if not all(map(NUMBER.fullmatch, numbers)):
        return "holds something else than numbers"
    if len(numbers) != NUMBERS[tag]:
        return f"has {len(numbers)} numbers, expected {NUMBERS[tag]}"
    values = list(map(float, numbers))
    if max(values) > STEPS:
        return f"goes beyond {STEPS}"
    if tag == "box" and (values[0] > values[2] or values[1] > values[3]):
        return "has its right left of its left, or its bottom above its top"
    return None


def format_grounding(boxes: Any, image_size: tuple[int, int], label: str | None = None) -> str:
    """Write boxes of one label, see `GroundingMixin.grounding_text`. Coordinates go to the nearest of 0..1000."""
    image_size = checked_size(image_size)
    if label is not None and (not isinstance(label, str) or not label.strip()):
        raise ValueError(f"The label is {label!r}, expected text, or None for a box without one.")
    if label is not None and TAGGED.search(label):
        raise ValueError(f"The label is {label!r}, which holds a tag; give plain text.")
    written = {"box": [], "quad": []}
    for points in _all_points(boxes):
        written["box" if len(points) == 2 else "quad"].append(_thousandths(points, image_size))
    parts = [f"<{tag}>[{','.join(places)}]</{tag}>" for tag, places in written.items() if places]
    return "".join([*([] if label is None else [f"<ref>{label}</ref>"]), *parts])


def _all_points(boxes: Any) -> list[list[list[float]]]:
    """Return the two opposite corners of each box, or the four corners of each quad, however they are nested."""
    boxes = _plain(boxes)
    single = _points(boxes)
    found = [single] if single else [_points(box) for box in boxes] if isinstance(boxes, list) else []
    if not found or None in found:
        raise ValueError(
            f"The boxes are {boxes}, expected (left, top, right, bottom) or four corners (x, y) for each, in numbers."
        )
    return found


def _plain(numbers: Any) -> Any:
    """Return lists of floats for tuples, arrays and tensors of any depth; what is no number stays."""
    numbers = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    if isinstance(numbers, (list, tuple)):
        return [_plain(number) for number in numbers]
    return float(numbers) if isinstance(numbers, Real) else numbers


def _points(box: Any) -> list[list[float]] | None:
    """Return the corners of one box or quad, None if it is neither."""
    if _are_numbers(box, 4):
        return [box[:2], box[2:]]
    is_corners = isinstance(box, list) and len(box) in (2, 4) and all(_are_numbers(point, 2) for point in box)
    return box if is_corners else None


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(number, float) for number in value)


def _thousandths(points: list[list[float]], image_size: tuple[int, int]) -> str:
    width, height = image_size
    is_ordered = len(points) == 4 or all(low <= high for low, high in zip(*points, strict=True))
    if not is_ordered or not all(0 <= x <= width and 0 <= y <= height for x, y in points):
        raise ValueError(
            f"A box is {points}, expected corners (x, y) in pixels, the left top one first, within a picture of "
            f"{width} x {height} (width x height): clip it, or check that it is not in other units."
        )
    return f"[{','.join(f'{round(STEPS * x / width)},{round(STEPS * y / height)}' for x, y in points)}]"


def _corners(box: Box) -> Corners:
    left, top, right, bottom = box
    return (left, top), (right, top), (right, bottom), (left, bottom)


def _default_font(size: int) -> Any:
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def _write_label(canvas: Image.Image, label: str, box: Box, colour: str, font: Any) -> None:
    """Write a label on its colour, above the box or, where there is no room, within."""
    if not label:
        return
    _, _, width, height = font.getbbox(label)
    x, y = max(0, min(box[0], canvas.width - width)), box[1] - height if box[1] >= height else box[1]
    painter = ImageDraw.Draw(canvas)
    painter.rectangle((x, y, x + width, y + height), fill=colour)
    painter.text((x, y), label, fill="white", font=font)
