"""The evaluation asks every task alike, judges each by its own measure and lays the results out."""

import pytest
from PIL import Image
from training_scenes import draw

from training import data, evaluate, questions
from training.questions import Turn
from training.wordings import LANGUAGES


pytestmark = pytest.mark.newest


class Parrot:
    """Answers every question with its right answer, or with nothing."""

    def __init__(self, right):
        self.right = right

    def num_tiles(self, image):
        return 1 if image.width < 1.5 * image.height < 2.25 * image.width else 5

    def answers(self, asked):
        return [question.turn.answer if question.turn.task in self.right else "" for question in asked]


def test_every_task_language_and_kind_of_pictures_is_asked_equally():
    asked = draw(lambda: list(evaluate.draw_questions(data.load_config(), 1, 0, Parrot(()).num_tiles)))
    cells = [(q.turn.task, q.turn.language, q.group) for q in asked if q.images]
    expected = sum(len(evaluate.ASKED.get(group, questions.TASKS)) for group in evaluate.CANVASES)
    assert len(cells) == len(set(cells)) == expected * len(LANGUAGES)
    assert {len(q.images) for q in asked if q.group == "two pictures"} == {2}


def test_results_count_answers_by_their_measure():
    turns = [
        Turn("colour", "en", "?", "red"),
        Turn("box", "en", "?", "<ref>x</ref><box>[[0,0,500,500]]</box>", ((0, (0, 0, 490, 510)),)),
        Turn("receipt", "zh", "?", "12.50"),
        Turn("talk", "en", "Hi", "Hello!"),
    ]
    picture = (Image.new("RGB", (224, 224)),)
    asked = [evaluate.Question("one tile", () if turn.task == "talk" else picture, turn) for turn in turns]
    results, mistakes = evaluate.evaluate(Parrot(("colour", "box", "talk")), asked, 2)
    assert {result.task: (result.measure, result.percent) for result in results} == {
        "colour": ("exact", 100),
        "box": ("box", 100),
        "receipt": ("anls", 0),
        "talk": ("exact", 100),
    }
    assert [(mistake["answer"], mistake["got"]) for mistake in mistakes] == [("12.50", "")]


def test_table():
    results = [
        evaluate.Result("colour", "exact", "en", "one tile", 9, 10),
        evaluate.Result("colour", "exact", "zh", "one tile", 10, 10),
        evaluate.Result("talk", "exact", "en", "no picture", 1, 2),
    ]
    assert evaluate.table(results).splitlines() == [
        "| task | measure | one tile | no picture |",
        "|---|---|---|---|",
        "| colour | exact | 90 / 100 |  |",
        "| talk | exact |  | 50 /  |",
    ]


def test_several_pictures_are_numbered_in_the_message():
    pictures = tuple(Image.new("RGB", (9, 9)) for _ in range(2))
    content = evaluate.Question("two pictures", pictures, Turn("colour", "en", "?", "red")).message["content"]
    assert [part.get("text", part["type"]) for part in content] == ["Image-1: ", "image", "Image-2: ", "image", "?"]


@pytest.mark.parametrize("measure", questions.TASKS.values())
def test_every_measure_has_a_judge(measure):
    assert measure in evaluate.JUDGES


def test_only_some_tasks_are_asked_about():
    asked = draw(
        lambda: list(evaluate.draw_questions(data.load_config(), 1, 0, Parrot(()).num_tiles, ("number", "box")))
    )
    assert {question.turn.task for question in asked} == {"number", "box"}
    assert {question.group for question in asked if question.turn.task == "number"} == {
        "one tile",
        "several tiles",
        "held-out fonts",
        "two pictures",
    }
