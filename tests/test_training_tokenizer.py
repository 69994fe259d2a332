"""The tokenizer of the embedded checkpoint."""

import pytest
import sentencepiece
from training_scenes import ROOT  # noqa: F401  (puts the repository on the path)

from training import tokenizer
from training.data import load_config
from training.prepare import TINY
from training.tiles import CHARACTERS


pytestmark = pytest.mark.newest


def test_it_splits_digits_and_falls_back_to_bytes():
    lines = ["What colour is the circle?", "圆形是什么颜色？"] * 50
    model = tokenizer.train_tokenizer(lines, 380)
    assert model == tokenizer.train_tokenizer(lines, 380)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert pieces.encode("4821", out_type=str) == ["4", "8", "2", "1"]
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) == (0, 1, 2)
    for text in ("What colour is the circle?", "圆形 é 漢\n"):
        assert pieces.decode(pieces.encode(text)) == text
        assert pieces.unk_id() not in pieces.encode(text)


def test_every_character_that_is_read_has_a_token():
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    assert pieces.unk_id() not in [pieces.piece_to_id(char.replace(" ", "▁")) for char in CHARACTERS]


def test_the_embedded_tokenizer_is_made_from_the_questions():
    made = tokenizer.train_tokenizer(tokenizer.training_text(), load_config()["tokenizer"]["pieces"])
    assert made == (TINY / "tokenizer.model").read_bytes()
