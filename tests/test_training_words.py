"""Words for training and words for evaluation are different ones."""

import random

import pytest
from training_scenes import ROOT  # noqa: F401  (puts the repository on the path)

from training import words


pytestmark = pytest.mark.newest


def test_held_out_words_are_never_drawn_for_training():
    training, held_out = words.words(held_out=False), words.words(held_out=True)
    assert not set(training) & set(held_out)
    assert min(len(training), 4 * len(held_out)) > 600
    assert all(3 <= len(word) <= 8 and word.isalpha() and word.islower() for word in training + held_out)
    rng = random.Random(0)
    assert {words.random_word(rng, held_out=True).lower() for _ in range(300)} <= set(held_out)


def test_chinese_characters_are_sixty_different_ones():
    assert len(words.CHINESE) == len(set(words.CHINESE)) == 60
    rng = random.Random(0)
    assert {len(words.random_chinese(rng)) for _ in range(100)} == {1, 2, 3, 4}
