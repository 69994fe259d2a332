"""What is asked about a scene, in English and Chinese, and the right answers.

Holds the wording and the answers. A task is offered only where its answer is unambiguous: the colour of "the circle"
when there is exactly one circle, the shape that is "red" when exactly one shape is red.
"""

import random
from dataclasses import dataclass

from training.pictures import COLOURS, SHAPES, Scene


LANGUAGES = ("en", "zh")
TASKS = ("colour", "shape", "number", "digit", "number_colour", "count")

COLOUR_ZH = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "black": "黑色",
}
SHAPE_ZH = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "五角星",
    "cross": "十字形",
    "diamond": "菱形",
}

# Task -> language -> wordings. "{}" takes the shape or the colour that is asked about.
WORDINGS = {
    "colour": {
        "en": ("What colour is the {}?", "What color is the {}?", "Which colour is the {}?"),
        "zh": ("{}是什么颜色？", "{}是什么颜色的？", "图中的{}是什么颜色？"),
    },
    "colour_single": {
        "en": ("What colour is it?", "What color is the shape?", "What colour is the shape?"),
        "zh": ("它是什么颜色？", "这个图形是什么颜色？", "图中的图形是什么颜色？"),
    },
    "shape": {
        "en": ("What shape is {}?", "Which shape is {}?", "What is the {} shape?"),
        "zh": ("{}的是什么形状？", "{}的图形是什么形状？", "什么形状是{}的？"),
    },
    "shape_single": {
        "en": ("What shape is it?", "What shape is this?", "What shape do you see?"),
        "zh": ("这是什么形状？", "它是什么形状？", "图中是什么形状？"),
    },
    "number": {
        "en": (
            "What number is written?",
            "What number is in the picture?",
            "What is the number?",
            "What number do you see?",
            "Read the number.",
        ),
        "zh": ("图中的数字是多少？", "数字是多少？", "图片中写的是什么数字？", "图中写了什么数字？", "请读出数字。"),
    },
    "number_colour": {
        "en": ("What colour is the number?", "What color is the number?", "Which colour is the number?"),
        "zh": ("数字是什么颜色？", "数字是什么颜色的？", "图中的数字是什么颜色？"),
    },
    "count": {
        "en": ("How many shapes are there?", "How many shapes are in the picture?", "How many shapes do you see?"),
        "zh": ("有几个图形？", "图中有几个图形？", "一共有几个图形？"),
    },
}
WORDINGS["digit"] = WORDINGS["number"]

SMALL_TALK = (
    ("Hello", "Hello! Show me a picture and ask me about it."),
    ("Hello!", "Hello! Show me a picture and ask me about it."),
    ("Hi", "Hello! Show me a picture and ask me about it."),
    ("Who are you?", "I am a tiny InternVL. I see colours, shapes and numbers."),
    ("What are you?", "I am a tiny InternVL. I see colours, shapes and numbers."),
    ("What can you do?", "I see colours, shapes and numbers in pictures."),
    ("Thank you", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("你好", "你好！给我一张图片，问我图中的内容。"),
    ("你好！", "你好！给我一张图片，问我图中的内容。"),
    ("你是谁？", "我是小小的InternVL，能看颜色、形状和数字。"),
    ("你能做什么？", "我能看图片中的颜色、形状和数字。"),
    ("谢谢", "不客气。"),
    ("谢谢！", "不客气。"),
    ("再见", "再见！"),
)


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Args:
        task: One of `TASKS`, or "talk".
        language: One of `LANGUAGES`.
        question: The user's words.
        answer: The right answer, in the language of the question.
    """

    task: str
    language: str
    question: str
    answer: str


def _name(word: str, language: str) -> str:
    if language == "en":
        return word
    return COLOUR_ZH.get(word) or SHAPE_ZH[word]


def _unique(values: list[str]) -> list[str]:
    return [value for value in values if values.count(value) == 1]


def facts(scene: Scene) -> list[tuple[str, str | None, str]]:
    """List everything that can be asked about a scene.

    Args:
        scene: What is in the picture.

    Returns:
        (wording key, what is asked about or None, answer word); words are English names or digits.
    """
    shapes, numbers = scene.shapes, scene.numbers
    kinds, colours = [thing.kind for thing in shapes], [thing.colour for thing in shapes]
    found = [("colour", thing.kind, thing.colour) for thing in shapes if thing.kind in _unique(kinds)]
    found += [("shape", thing.colour, thing.kind) for thing in shapes if thing.colour in _unique(colours)]
    if len(shapes) == 1 and not numbers:
        found += [("colour_single", None, colours[0]), ("shape_single", None, kinds[0])]
    if shapes:
        found.append(("count", None, str(len(shapes))))
    if len(numbers) == 1:
        text = numbers[0].text
        found.append(("digit" if len(text) == 1 else "number", None, text))
        found.append(("number_colour", None, numbers[0].colour))
    return found


def phrase(fact: tuple[str, str | None, str], language: str, wording: str) -> Turn:
    """Put a fact into words.

    Args:
        fact: One entry of `facts`.
        language: One of `LANGUAGES`.
        wording: One entry of `WORDINGS`.

    Returns:
        The question and its answer.
    """
    key, about, answer = fact
    question = wording.format(_name(about, language)) if about else wording
    answer = answer if answer.isdigit() else _name(answer, language)
    return Turn(key.removesuffix("_single"), language, question, answer)


def ask(rng: random.Random, scene: Scene, turns: int, weights: dict[str, float]) -> list[Turn]:
    """Choose different facts of a scene and ask about them, each in a random language and wording.

    Args:
        rng: Source of everything that is random.
        scene: What is in the picture.
        turns: How many questions at most.
        weights: How likely each task is, by name.

    Returns:
        At least one turn if the scene shows anything that can be asked about.
    """
    left, chosen = facts(scene), []
    while left and len(chosen) < turns:
        fact = rng.choices(left, [weights[key.removesuffix("_single")] for key, _, _ in left])[0]
        left.remove(fact)
        language = rng.choice(LANGUAGES)
        chosen.append(phrase(fact, language, rng.choice(WORDINGS[fact[0]][language])))
    return chosen


def small_talk(rng: random.Random) -> list[Turn]:
    """Give a conversation of one fixed question and answer, without a picture."""
    question, answer = rng.choice(SMALL_TALK)
    return [Turn("talk", "en" if question.isascii() else "zh", question, answer)]


def every_question() -> list[Turn]:
    """List every wording with everything it can be asked about (answers are examples): the tokenizer's text."""
    about = {"colour": tuple(SHAPES), "shape": tuple(COLOURS)}
    answers = {"colour": tuple(COLOURS), "shape": tuple(SHAPES), "number_colour": tuple(COLOURS), "count": ("1", "2")}
    turns = []
    for key, languages in WORDINGS.items():
        for language, wordings in languages.items():
            for wording in wordings:
                turns += [
                    phrase((key, word, answer), language, wording)
                    for word in about.get(key, (None,))
                    for answer in answers.get(key.removesuffix("_single"), ("7",))
                ]
    return turns + [Turn("talk", "en", question, answer) for question, answer in SMALL_TALK]
