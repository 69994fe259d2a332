"""Boxes in answers. The page and the notebook know grounding tags through this file alone."""

import re


# <ref>label</ref><box>[[x1,y1,x2,y2],...]</box>; the label may be missing, and one label may have several boxes.
TAGGED = re.compile(r"(?:<ref>(?P<label>.*?)</ref>\s*)?<box>(?P<boxes>.*?)</box>", re.DOTALL)
COORDINATES = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")


def find_boxes(answer: str, size: tuple[int, int]) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Find the boxes of an answer.

    Args:
        answer: Text with grounding tags; their numbers are thousandths of the whole picture's sides.
        size: Size (width, height) of the picture in pixels.

    Returns:
        Pairs of a label, "" where there is none, and a box (left, top, right, bottom) in pixels. What is no box, since
        it has no four numbers or no area inside the picture, is left out.
    """
    found = []
    for match in TAGGED.finditer(answer):
        for numbers in COORDINATES.findall(match["boxes"]):
            edges = [min(int(number), 1000) * size[side % 2] / 1000 for side, number in enumerate(numbers)]
            if edges[0] < edges[2] and edges[1] < edges[3]:
                found.append((match["label"] or "", tuple(edges)))
    return found
