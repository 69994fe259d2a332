"""The words and Chinese characters that are written in training pictures, and those kept for evaluation.

A word is held out when its place in the alphabetical list says so: every fifth. Chinese texts are random strings of a
small set of characters, so every text of two or more is new.
"""

import random
from functools import lru_cache
from pathlib import Path


WORDS_FILE = Path(__file__).parent / "words.txt"
HELD_OUT_EVERY = 5
# Sixty characters of signs and calendars, easy to tell apart at 20 pixels.
CHINESE = (
    "一三五七八十大小上下中人口月山水火土石天王女心门马车东西南北"
    "出开关电国文书生年高长红黄白春夏秋冬早夜米茶鱼鸟花草风雨雪云"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# What stands in every receipt and form, and the keys' values: whether they are numbers.
TOTAL = "TOTAL"
ITEMS = ("MILK", "BREAD", "RICE", "EGGS", "TEA", "APPLE", "FISH", "SALT", "SOAP", "CAKE", "BEER", "WATER")
KEYS = {
    "NAME": False,
    "CITY": False,
    "DAY": False,
    "TEAM": False,
    "CODE": True,
    "ROOM": True,
    "AGE": True,
    "SEAT": True,
}
# Random strings keep the language model from guessing words that it knows.
RANDOM_SHARE = 0.4


@lru_cache(maxsize=2)
def words(held_out: bool) -> tuple[str, ...]:
    """List dictionary words of 3 to 8 letters.

    Args:
        held_out: Whether to list the words kept for evaluation, or those of training.

    Returns:
        Lower-case words.
    """
    listed = WORDS_FILE.read_text().split()
    chosen = [word for index, word in enumerate(listed) if (index % HELD_OUT_EVERY == 0) == held_out]
    # Documents show theirs in training, too.
    shown = {word.lower() for word in (*ITEMS, *KEYS, TOTAL)} if held_out else ()
    return tuple(word for word in chosen if word not in shown)


def with_case(rng: random.Random, word: str) -> str:
    """Write a word in upper case, lower case or with a capital."""
    return rng.choices((word.upper(), word, word.capitalize()), (4, 4, 2))[0]


def random_word(rng: random.Random, held_out: bool) -> str:
    """Choose a word: in training now and then a random string, in evaluation always a held-out dictionary word."""
    if not held_out and rng.random() < RANDOM_SHARE:
        return with_case(rng, "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 8))))
    return with_case(rng, rng.choice(words(held_out)))


def random_chinese(rng: random.Random) -> str:
    """Choose one to four Chinese characters."""
    return "".join(rng.choice(CHINESE) for _ in range(rng.randint(1, 4)))
