"""What can be asked about a scene, and the right answers, in English and Chinese; the wordings are in `wordings.py`.

A question is offered only where its answer is unambiguous: the colour of "the circle" when there is exactly one
circle, the shape that is "red" when exactly one shape is red.
"""

import random
from dataclasses import dataclass, replace

from training.pictures import CHINESE, COLOURS, NUMBER, SHAPES, Box, Scene, Thing
from training.tiles import BOX_STEPS, box_steps
from training.wordings import ABOUT_IMAGE, LANGUAGES, NAMES_ZH, SHORT_ANSWER, SMALL_TALK, WORDINGS
from training.words import CHINESE as CHARACTERS
from training.words import ITEMS, KEYS, TOTAL


# Task -> how its answers are judged, see `training.evaluate`.
TASKS = {
    "colour": "exact",
    "shape": "exact",
    "count": "exact",
    "position": "exact",
    "relation": "exact",
    "caption": "exact",
    "box": "box",
    "digit": "exact",
    "number": "exact",
    "word": "exact",
    "line": "vqa",
    "chinese": "exact",
    "text_colour": "exact",
    "text_by_colour": "exact",
    "receipt": "anls",
    "form": "anls",
    "chart_extreme": "exact",
    "chart_value": "relaxed",
}
# Answers read off the picture are spelled: one token per character, as the merged tokens of the vocabulary are for
# what is always the same.
SPELLED = (
    "digit",
    "number",
    "word",
    "line",
    "chinese",
    "text_by_colour",
    "receipt",
    "form",
    "chart_extreme",
    "chart_value",
)
SHORT_ANSWER_SHARE = 0.2
# Boxes are told in thousandths of the picture's sides.
BOX_SCALE = 1000
# Two things are "left" and "right" of each other from this share of the picture's side on.
CLEARLY_APART = 0.12


def _same(text: str) -> dict[str, str]:
    return dict.fromkeys(LANGUAGES, text)


def _names(word: str) -> dict[str, str]:
    return {"en": word, "zh": NAMES_ZH[word]}


def _coloured(colour: str, kind: str) -> dict[str, str]:
    return {"en": f"{colour} {kind}", "zh": f"{NAMES_ZH[colour]}的{NAMES_ZH[kind]}"}


@dataclass(frozen=True)
class Fact:
    """Something to ask about a scene.

    Args:
        wording: A key of `WORDINGS`.
        about: What is asked about, each by language.
        answer: The right answer by language.
        boxes: For each of `about`, the box of what it names, in thousandths of the picture's sides. In a document that
            is where the value stands. Empty where no place is known.
    """

    wording: str
    about: tuple[dict[str, str], ...]
    answer: dict[str, str]
    boxes: tuple[Box, ...] = ()

    @property
    def task(self) -> str:
        """The key of `TASKS` that this fact belongs to."""
        return self.wording.split("/")[0]


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Args:
        task: A key of `TASKS`, or "talk".
        language: One of `LANGUAGES`.
        question: The user's words.
        answer: The right answer, in the language of the question.
        named: For each thing named in the question, the index of its name's last character and its box in thousandths
            of the picture's sides.
    """

    task: str
    language: str
    question: str
    answer: str
    named: tuple[tuple[int, Box], ...] = ()

    @property
    def spelled(self) -> bool:
        """Whether the answer is given one character a token."""
        return self.task in SPELLED


def _alone(things: list[Thing], name: str) -> list[Thing]:
    """Give the things that share the value of an attribute with no other."""
    values = [getattr(thing, name) for thing in things]
    return [thing for thing in things if values.count(getattr(thing, name)) == 1]


def _boxes(scene: Scene, *things: Thing) -> tuple[Box, ...]:
    """Give the boxes of things in thousandths of the picture's sides."""
    return tuple(
        tuple(BOX_SCALE * edge / scene.image.size[side % 2] for side, edge in enumerate(thing.box)) for thing in things
    )


def _shape_facts(scene: Scene) -> list[Fact]:
    shapes = scene.shapes
    found = [
        Fact("colour", (_names(thing.kind),), _names(thing.colour), _boxes(scene, thing))
        for thing in _alone(shapes, "kind")
    ]
    found += [
        Fact("shape", (_names(thing.colour),), _names(thing.kind), _boxes(scene, thing))
        for thing in _alone(shapes, "colour")
    ]
    if len(shapes) == 1 and not scene.texts:
        found.append(Fact("colour/single", (), _names(shapes[0].colour)))
        found.append(Fact("shape/single", (), _names(shapes[0].kind)))
    if shapes:
        found.append(Fact("count", (), _same(str(len(shapes)))))
    return found


def _text_facts(scene: Scene) -> list[Fact]:
    texts = scene.texts
    if len(texts) > 1:
        return [
            Fact("text_by_colour", (_names(thing.colour),), _same(thing.text), _boxes(scene, thing))
            for thing in _alone(texts, "colour")
        ]
    if not texts:
        return []
    text = texts[0]
    if text.kind == NUMBER:
        task, name = "digit" if len(text.text) == 1 else "number", "number"
    else:
        task, name = ("chinese" if text.kind == CHINESE else "line" if " " in text.text else "word"), "text"
    return [
        Fact(task, (), _same(text.text)),
        Fact("text_colour", (_names(name),), _names(text.colour), _boxes(scene, text)),
    ]


def _centre(scene: Scene, thing: Thing) -> tuple[float, float]:
    left, top, right, bottom = thing.box
    return (left + right) / 2 / scene.image.width, (top + bottom) / 2 / scene.image.height


def zone(x: float, y: float) -> str | None:
    """Name the ninth of the picture that a point lies in.

    Args:
        x: Share of the width, from the left.
        y: Share of the height, from the top.

    Returns:
        "top left" ... "centre" ... "bottom right", or None near a border between two.
    """
    if any(abs(value - border) < 0.04 for value in (x, y) for border in (1 / 3, 2 / 3)):
        return None
    row, column = ("top", "", "bottom")[int(y * 3)], ("left", "", "right")[int(x * 3)]
    return f"{row} {column}".strip() or "centre"


def _place_facts(scene: Scene) -> list[Fact]:
    shapes, found = _alone(scene.shapes, "kind"), []
    for thing in shapes:
        place = zone(*_centre(scene, thing))
        if place:
            found.append(Fact("position", (_names(thing.kind),), _names(place), _boxes(scene, thing)))
    for one in shapes:
        for other in shapes:
            (x, y), (other_x, other_y) = _centre(scene, one), _centre(scene, other)
            for gap, low, high in ((other_x - x, "left", "right"), (other_y - y, "above", "below")):
                if abs(gap) >= CLEARLY_APART:
                    about, boxes = (_names(one.kind), _names(other.kind)), _boxes(scene, one, other)
                    found.append(Fact(f"relation/{low}", about, _names("yes" if gap > 0 else "no"), boxes))
                    found.append(Fact(f"relation/{high}", about, _names("no" if gap > 0 else "yes"), boxes))
    return found


def box_text(box: Box, size: tuple[int, int]) -> str:
    """Write a box as the published grounding answers do.

    Args:
        box: (left, top, right, bottom) in pixels.
        size: (width, height) of the picture in pixels.

    Returns:
        "<box>[[x1,y1,x2,y2]]</box>", in thousandths of the picture's sides, rounded to the grid of `BOX_STEPS`.
    """
    numbers = [round(BOX_SCALE * step / BOX_STEPS) for step in box_steps(box, size)]
    return f"<box>[[{','.join(map(str, numbers))}]]</box>"


def _box_facts(scene: Scene) -> list[Fact]:
    named = [(thing, _coloured(thing.colour, thing.kind)) for thing in scene.shapes]
    named += [(thing, _coloured(thing.colour, "text")) for thing in scene.texts]
    labels = [name["en"] for _, name in named]
    found = []
    for thing, name in named:
        if labels.count(name["en"]) == 1:
            label = {language: f"<ref>{text}</ref>" for language, text in name.items()}
            written = box_text(thing.box, scene.image.size)
            answer = {language: text + written for language, text in label.items()}
            found.append(Fact("box", (label,), answer, _boxes(scene, thing)))
    return found


def _caption_facts(scene: Scene) -> list[Fact]:
    """Name every shape in the order of the image tokens that show their centres: row by row of 1/8 of the picture."""
    if not 1 <= len(scene.shapes) <= 4 or scene.texts:
        return []

    def order(thing: Thing) -> tuple[int, float]:
        x, y = _centre(scene, thing)
        return int(y * 8), x

    shapes = sorted(scene.shapes, key=order)
    names = [_coloured(thing.colour, thing.kind) for thing in shapes]
    english = [f"{'an' if name['en'].startswith('o') else 'a'} {name['en']}" for name in names]
    chinese = [name["zh"] for name in names]
    joined = {"en": _enumerate(english, ", ", " and "), "zh": _enumerate(chinese, "、", "和")}
    return [Fact("caption", (), joined)]


def _enumerate(words: list[str], comma: str, conjunction: str) -> str:
    return words[0] if len(words) == 1 else comma.join(words[:-1]) + conjunction + words[-1]


def _document_facts(scene: Scene) -> list[Fact]:
    entries = scene.entries
    boxes = [_boxes(scene, value) for value in scene.values]
    if scene.layout == "chart":
        ordered = sorted(entries, key=lambda entry: int(entry[1]))
        found = [
            Fact("chart_value", (_same(letter),), _same(value), box)
            for (letter, value), box in zip(entries, boxes, strict=True)
        ]
        found.append(Fact("chart_extreme/lowest", (), _same(ordered[0][0])))
        return [*found, Fact("chart_extreme/highest", (), _same(ordered[-1][0]))]
    if scene.layout == "form":
        return [
            Fact("form", (_same(key.lower()),), _same(value), box)
            for (key, value), box in zip(entries, boxes, strict=True)
        ]
    items = [
        Fact("receipt/item", (_same(item.lower()),), _same(price), box)
        for (item, price), box in zip(entries, boxes, strict=True)
        if item != TOTAL
    ]
    # As likely as all items together.
    return items + [Fact("receipt/total", (), _same(entries[-1][1]))] * len(items)


def facts(scene: Scene) -> list[Fact]:
    """List everything that can be asked about a scene."""
    if scene.layout != "free":
        return _document_facts(scene)
    parts = (_shape_facts, _text_facts, _place_facts, _box_facts, _caption_facts)
    return [fact for part in parts for fact in part(scene)]


def phrase(fact: Fact, language: str, wording: str) -> Turn:
    """Put a fact into words.

    Args:
        fact: One entry of `facts`.
        language: One of `LANGUAGES`.
        wording: One entry of `WORDINGS`.

    Returns:
        The question and its answer.
    """
    question, *rests = wording.split("{}")
    ends = []
    for about, rest in zip(fact.about, rests, strict=True):
        question += about[language]
        ends.append(len(question) - 1)
        question += rest
    named = tuple(zip(ends, fact.boxes, strict=True)) if fact.boxes else ()
    return Turn(fact.task, language, question, fact.answer[language], named)


def ask(rng: random.Random, scene: Scene, turns: int, weights: dict[str, float]) -> list[Turn]:
    """Choose different facts of a scene and ask about them, each in a random language and wording.

    Args:
        rng: Source of everything that is random.
        scene: What is in the picture.
        turns: How many questions at most.
        weights: How likely each task is, by name; 1 if not named, shared by all facts of the task.

    Returns:
        At least one turn if the scene shows anything that can be asked about.
    """
    left, chosen = facts(scene), []
    while left and len(chosen) < turns:
        tasks = [fact.task for fact in left]
        fact = rng.choices(left, [weights.get(task, 1) / tasks.count(task) for task in tasks])[0]
        left = [other for other in left if other != fact]
        language = rng.choice(LANGUAGES)
        turn = phrase(fact, language, rng.choice(WORDINGS[fact.wording][language]))
        if fact.task not in ("caption", "box") and rng.random() < SHORT_ANSWER_SHARE:
            turn = replace(turn, question=turn.question + SHORT_ANSWER[language])
        chosen.append(turn)
    return chosen


def about_image(turn: Turn, number: int) -> Turn:
    """Say which of several pictures a question is about, counted from 1."""
    question = ABOUT_IMAGE[turn.language].format(number, turn.question)
    shift = question.index(turn.question)
    return replace(turn, question=question, named=tuple((last + shift, box) for last, box in turn.named))


def small_talk(rng: random.Random) -> list[Turn]:
    """Give a conversation of one fixed question and answer, without a picture."""
    question, answer = rng.choice(SMALL_TALK)
    return [Turn("talk", "en" if question.isascii() else "zh", question, answer)]


def every_question() -> list[Turn]:
    """List every wording with what it can be asked about, and every name in an answer: the tokenizer's text."""
    about = {
        "colour": SHAPES,
        "shape": tuple(COLOURS),
        "text_colour": ("text", "number"),
        "text_by_colour": tuple(COLOURS),
        "position": SHAPES,
    }
    upper = {"receipt/item": ITEMS, "form": tuple(KEYS), "chart_value": ("A", "B")}
    turns = []
    for key, languages in WORDINGS.items():
        for language, wordings in languages.items():
            names = [(_names(word),) for word in about.get(key, ())] or [
                (_same(word.lower()),) for word in upper.get(key, ())
            ]
            names = names or [(_names("circle"), _names("star"))] * (1 + 4 * key.startswith("relation"))
            for wording in wordings:
                places = wording.count("{}")
                turns += [phrase(Fact(key, name[:places], _same("7")), language, wording) for name in names]
    for language in LANGUAGES:
        answers = [_names(word)[language] for word in NAMES_ZH] * 4
        answers += [_coloured(colour, kind)[language] for colour in COLOURS for kind in (*SHAPES, "text")]
        answers += [SHORT_ANSWER[language].strip()] * 20 + [ABOUT_IMAGE[language].format(1, "")] * 20
        turns += [Turn("talk", language, answer, answer) for answer in answers]
    turns += [Turn("talk", "zh", character, character) for character in CHARACTERS]
    return turns + [Turn("talk", "en", question, answer) for question, answer in SMALL_TALK]
