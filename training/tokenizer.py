"""Trains the small SentencePiece model of the embedded checkpoint on the questions and answers written here.

BPE with byte fallback and no normalisation, like InternLM2's own `tokenizer.model`. Digits are always single tokens,
so that a number is read digit by digit. Control tokens are appended after the SentencePiece vocabulary in published
order.
"""

import io
from pathlib import Path

import sentencepiece

from training.durable import write_bytes
from training.questions import every_question


SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SPECIAL_TOKENS = (
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
PRINTABLE_ASCII = "".join(map(chr, range(33, 127)))
# The constant parts of every prompt appear in every conversation, hence as often as all questions together.
PROMPT_REPEATS = 2000


def training_text() -> list[str]:
    """Give the sentences that the vocabulary is made for: prompt frame, questions and answers."""
    lines = [SYSTEM_MESSAGE, "system", "user", "assistant"] * PROMPT_REPEATS
    for turn in every_question():
        lines += [turn.question, turn.answer]
    return lines


def train_tokenizer(lines: list[str], vocab_size: int) -> bytes:
    """Train a SentencePiece BPE model.

    Args:
        lines: Sentences; the vocabulary covers all their characters and printable ASCII.
        vocab_size: Number of pieces, the 256 bytes and `<unk>`, `<s>`, `</s>` included.

    Returns:
        The serialized model, the same bytes on every run.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        required_chars=PRINTABLE_ASCII,
        byte_fallback=True,
        split_digits=True,
        # "InternVL," may be one piece: the system message is always the same.
        split_by_unicode_script=False,
        max_sentencepiece_length=64,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path, vocab_size: int) -> int:
    """Train the tokenizer of the embedded checkpoint.

    Args:
        folder: Receives `tokenizer.model`.
        vocab_size: Number of SentencePiece pieces.

    Returns:
        Size of the whole vocabulary, special tokens included.
    """
    write_bytes(folder / "tokenizer.model", train_tokenizer(training_text(), vocab_size))
    return vocab_size + len(SPECIAL_TOKENS)
