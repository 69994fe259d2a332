"""What is asked about a scene has one right answer, and it is the one given."""

import random

import pytest
from training_scenes import lay_out, scene

from training import questions
from training.wordings import LANGUAGES, NAMES_ZH, WORDINGS


pytestmark = pytest.mark.newest

SQUARE = ("square", "red", (0, 0, 100, 100))
STAR = ("star", "blue", (800, 300, 1000, 500))
CIRCLE = ("circle", "red", (450, 200, 550, 300))


def answers(drawn, task, language="en"):
    """Give what is asked for a task: names of what it is about -> answer."""
    return {
        (fact.wording, *(about[language] for about in fact.about)): fact.answer[language]
        for fact in questions.facts(drawn)
        if fact.task == task
    }


def test_a_shape_is_named_by_what_no_other_shape_shares():
    drawn = lay_out([SQUARE, STAR, CIRCLE])
    assert answers(drawn, "colour") == {
        ("colour", "square"): "red",
        ("colour", "star"): "blue",
        ("colour", "circle"): "red",
    }
    assert answers(drawn, "shape") == {("shape", "blue"): "star"}
    assert answers(drawn, "count") == {("count",): "3"}
    assert answers(lay_out([SQUARE]), "shape")["shape/single",] == "square"


def test_places():
    drawn = lay_out([SQUARE, STAR, CIRCLE])
    assert answers(drawn, "position") == {
        ("position", "square"): "top left",
        ("position", "star"): "bottom right",
        ("position", "circle"): "centre",
    }
    assert questions.zone(1 / 3, 0.5) is None
    relations = answers(drawn, "relation")
    assert relations["relation/left", "square", "star"] == "yes"
    assert relations["relation/right", "square", "star"] == "no"
    assert relations["relation/above", "square", "star"] == "yes"
    assert relations["relation/below", "circle", "star"] == "no"
    close = lay_out([SQUARE, ("star", "blue", (50, 300, 150, 400))])
    assert not [key for key in answers(close, "relation") if key[0] in ("relation/left", "relation/right")]


def test_boxes_are_thousandths_of_the_sides():
    drawn = lay_out([STAR, ("word", "green", (0, 0, 500, 125), "sun")])
    boxes = answers(drawn, "box")
    assert boxes["box", "<ref>blue star</ref>"] == "<ref>blue star</ref><box>[[812,594,1000,1000]]</box>"
    assert boxes["box", "<ref>green text</ref>"] == "<ref>green text</ref><box>[[0,0,500,250]]</box>"
    (star, _) = [fact.boxes for fact in questions.facts(drawn) if fact.task == "box"]
    assert star == ((800, 600, 1000, 1000),)
    twins = lay_out([STAR, ("star", "blue", (0, 0, 100, 100))])
    assert not answers(twins, "box")


def test_captions_go_row_by_row():
    drawn = lay_out([STAR, CIRCLE, ("diamond", "orange", (300, 10, 400, 110))])
    english, chinese = (answers(drawn, "caption", language)["caption",] for language in LANGUAGES)
    assert english == "an orange diamond, a red circle and a blue star"
    assert chinese == "橙色的菱形、红色的圆形和蓝色的五角星"
    assert answers(lay_out([STAR]), "caption") == {("caption",): "a blue star"}


@pytest.mark.parametrize(
    ("text", "kind", "task"), [("7", "number", "digit"), ("70", "number", "number"), ("sun", "word", "word"),
                               ("the sun", "word", "line"), ("山", "chinese", "chinese")]
)  # fmt: skip
def test_a_single_text_is_read(text, kind, task):
    drawn = lay_out([(kind, "green", (0, 0, 100, 50), text)])
    assert answers(drawn, task) == {(task,): text}
    assert list(answers(drawn, "text_colour").values()) == ["green"]


def test_several_texts_are_told_apart_by_colour():
    things = [("word", colour, (0, 100 * i, 100, 100 * i + 50), text) for i, (colour, text) in
              enumerate([("red", "sun"), ("blue", "sea"), ("blue", "sky")])]  # fmt: skip
    drawn = lay_out(things)
    assert answers(drawn, "text_by_colour") == {("text_by_colour", "red"): "sun"}
    assert not answers(drawn, "word")


def test_documents():
    receipt = lay_out([], layout="receipt", entries=[("MILK", "1.50"), ("TOTAL", "1.50")])
    assert answers(receipt, "receipt") == {("receipt/item", "milk"): "1.50", ("receipt/total",): "1.50"}
    form = lay_out([], layout="form", entries=[("NAME", "Alice")])
    assert answers(form, "form", "zh") == {("form", "name"): "Alice"}
    chart = lay_out([], layout="chart", entries=[("C", "30"), ("A", "7"), ("B", "12")])
    assert answers(chart, "chart_extreme") == {("chart_extreme/lowest",): "A", ("chart_extreme/highest",): "C"}
    assert answers(chart, "chart_value")["chart_value", "B"] == "12"


def test_asking_gives_different_questions_in_the_language_of_their_answers():
    weights = dict.fromkeys(questions.TASKS, 1.0)
    for seed in range(20):
        turns = questions.ask(random.Random(seed), scene(seed), 9, weights)
        assert len(turns) == len(set(turns))
        for turn in turns:
            assert turn.question.isascii() == (turn.language == "en")
            if turn.task in ("colour", "shape", "position", "relation"):
                assert turn.answer in (NAMES_ZH if turn.language == "en" else NAMES_ZH.values())


def test_every_task_has_wordings_in_both_languages():
    assert {wording.split("/")[0] for wording in WORDINGS} == set(questions.TASKS)
    assert all(set(languages) == set(LANGUAGES) for languages in WORDINGS.values())


def test_questions_about_one_of_two_pictures_say_which():
    turn = questions.Turn("colour", "zh", "它是什么颜色？", "红色")
    assert questions.about_image(turn, 2).question == "Image-2：它是什么颜色？"


def test_phrases_say_where_things_are_named():
    drawn = lay_out([STAR, CIRCLE])
    for fact in questions.facts(drawn):
        for language in LANGUAGES:
            for wording in WORDINGS[fact.wording][language]:
                turn = questions.phrase(fact, language, wording)
                for (last, box), name, expected in zip(turn.named, fact.about, fact.boxes, strict=True):
                    assert turn.question[: last + 1].endswith(name[language])
                    assert box == expected
                second = questions.about_image(turn, 2)
                assert [second.question[: last + 1][-2:] for last, _ in second.named] == [
                    turn.question[: last + 1][-2:] for last, _ in turn.named
                ]
