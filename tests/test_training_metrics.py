"""The measures of `training.metrics`, against cases worked out by hand."""

import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import metrics


pytestmark = pytest.mark.newest


def test_exact_match_ignores_case_and_surrounding_space():
    assert metrics.exact(" Red ", "red") == 1
    assert metrics.exact("red.", "red") == 0


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("invoice", ["invoice"], 1),
        ("INVOICE", ["invoice"], 1),
        ("invoic", ["invoice"], 1 - 1 / 7),  # one letter lacks
        ("abcd", ["abxy"], 0.5),  # two of four: just at the threshold
        ("abcd", ["axyz"], 0),  # three of four: below it
        ("12.5", ["11.5", "12.50"], 0.8),  # the nearer reference counts: one letter of five
        ("", ["a"], 0),
    ],
)
def test_anls(answer, references, score):
    assert metrics.anls(answer, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("95", "100", 1),  # off by exactly 5 %
        ("94.9", "100", 0),
        ("1,050", "1000", 1),
        ("50%", "0.5", 1),
        ("-95", "-100", 1),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("B", "b", 1),
        ("B", "C", 0),
        ("12", "B", 0),
    ],
)
def test_relaxed_accuracy(answer, expected, score):
    assert metrics.relaxed(answer, expected) == score


def test_vqa_accuracy_leaves_each_annotator_out_in_turn():
    people = ["stop"] * 3 + ["halt"] * 7
    # Leaving out one of the three leaves two of three needed (2/3, three times), else three (1, seven times).
    assert metrics.vqa_accuracy("stop", people) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert metrics.vqa_accuracy("halt", people) == 1
    assert metrics.vqa_accuracy("go", people) == 0
    # One of ten agrees: 0 when that one is left out, else 1/3.
    assert metrics.vqa_accuracy("go", ["go", *["no"] * 9]) == pytest.approx(9 / 30)


@pytest.mark.parametrize(
    ("answer", "person"), [("The Stop.", "stop"), ("two", "2"), ("12.50", "12.50"), ("a, b", "b"), ("$5", "5")]
)
def test_vqa_accuracy_reads_past_articles_punctuation_and_number_words(answer, person):
    assert metrics.vqa_accuracy(answer, [person]) == 1


@pytest.mark.parametrize("measure", [metrics.anls, metrics.vqa_accuracy])
def test_no_reference_is_an_error(measure):
    with pytest.raises(ValueError, match="no reference"):
        measure("a", [])


def test_boxes():
    assert metrics.find_box("<ref>star</ref><box>[[1,20,300,1000]]</box>") == (1, 20, 300, 1000)
    assert metrics.find_box("[[1, 2, 3, 4]] and [[5, 6, 7, 8]]") == (1, 2, 3, 4)
    assert metrics.find_box("[[1,2,3]]") is None
    assert metrics.iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert metrics.iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert metrics.iou((0, 0, 10, 10), (10, 10, 20, 20)) == 0
    assert metrics.iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0
    # 100 x 50 of 100 x 100 is one half: not more than that.
    assert metrics.box_accuracy("[[0,0,100,50]]", (0, 0, 100, 100)) == 0
    assert metrics.box_accuracy("[[0,0,100,51]]", (0, 0, 100, 100)) == 1
    assert metrics.box_accuracy("no box", (0, 0, 100, 100)) == 0
    assert metrics.box_accuracy("[[90,90,10,10]]", (10, 10, 90, 90)) == 0
