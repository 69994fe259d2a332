"""The measures of DocVQA, ChartQA, TextVQA and RefCOCO, and exact match: each gives a score from 0 to 1.

Sources: ANLS, Biten et al. 2019 (arXiv 1905.13648); relaxed accuracy, Methani et al. 2020 (arXiv 1909.00997); VQA
accuracy, Antol et al. 2015 (arXiv 1505.00468); boxes, RefCOCO: right if the intersection over union exceeds one half.
"""

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from training.pictures import Box


ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
IOU_THRESHOLD = 0.5
# As many annotators must agree for a full score.
VQA_AGREEMENT = 3
ARTICLES = ("a", "an", "the")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BOX = re.compile(r"\[\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]\]")


def exact(answer: str, expected: str) -> float:
    """Compare an answer with the right one, without regard to case and surrounding space."""
    return float(answer.strip().casefold() == expected.strip().casefold())


def anls(answer: str, references: Sequence[str]) -> float:
    """Measure the average normalised Levenshtein similarity of one answer, the score of DocVQA.

    Args:
        answer: The model's answer.
        references: The right answers; the nearest counts.

    Returns:
        1 - edit distance / length of the longer, or 0 where that is below one half.

    Raises:
        ValueError: When there is no reference.
    """
    if not references:
        raise ValueError("anls got no reference; it needs at least one right answer")
    given = answer.strip().casefold()
    best = max(Levenshtein.normalized_similarity(given, right.strip().casefold()) for right in references)
    return best if best >= ANLS_THRESHOLD else 0.0


def relaxed(answer: str, expected: str) -> float:
    """Judge an answer as ChartQA does: numbers may be off by 5 % of the right one, other answers must be equal."""
    given, right = _number(answer), _number(expected)
    if given is None or right is None:
        return exact(answer, expected)
    return float(abs(given - right) <= RELAXED_TOLERANCE * abs(right))


def _number(text: str) -> float | None:
    text = text.strip().replace(",", "")
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Judge an answer as VQA and TextVQA do, against the answers of several people.

    Case, articles and punctuation do not count, and number words are digits; contractions are taken as they stand.

    Args:
        answer: The model's answer.
        references: One answer of each annotator, ten in the published sets.

    Returns:
        The mean over all ways to leave one annotator out of min(equal answers / 3, 1).

    Raises:
        ValueError: When there is no reference.
    """
    if not references:
        raise ValueError("vqa_accuracy got no reference; it needs the answers of the annotators")
    given, people = _plain(answer), [_plain(right) for right in references]
    if len(people) == 1:
        return float(given == people[0])
    equal = sum(person == given for person in people)
    scores = [min((equal - (person == given)) / VQA_AGREEMENT, 1.0) for person in people]
    return sum(scores) / len(scores)


def _plain(text: str) -> str:
    text = re.sub(r"(?<!\d)[.,]|[.,](?!\d)", " ", text.casefold())
    words = re.sub(r"[^\w\s'.,:]", " ", text).split()
    words = [str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in words]
    return " ".join(word for word in words if word not in ARTICLES)


def find_box(answer: str) -> Box | None:
    """Read the first box of an answer, `[[x1,y1,x2,y2]]` in thousandths of the picture's sides, or None."""
    match = BOX.search(answer)
    return tuple(map(float, match.groups())) if match else None


def iou(one: Box, other: Box) -> float:
    """Divide the intersection of two boxes (left, top, right, bottom) by their union; 0 for boxes without area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum(max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (one, other))
    return shared / (areas - shared) if areas > shared else 0.0


def box_accuracy(answer: str, expected: Box) -> float:
    """Judge the first box of an answer as RefCOCO does: right if its IoU with the expected box exceeds one half."""
    found = find_box(answer)
    return float(found is not None and iou(found, expected) > IOU_THRESHOLD)
