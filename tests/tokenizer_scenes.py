"""Folders with tokenizers, and texts to try on them."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import sentencepiece


ROOT = Path(__file__).resolve().parent.parent

# A small vocabulary in the published layout: three control pieces, 256 bytes, learned pieces, then pieces that the
# tokenizer configuration renames, then tokens behind the pieces.
CORPUS = ["the cat sat on the mat", "the dog's bone isn't there", "你好 世界 你好", "what's the text , please ?"] * 20
RENAMED = ["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"]
RENAMED_TO = ["<|im_end|>", "<|im_start|>"]
BEHIND = ["<img>", "</img>", "<IMG_CONTEXT>"]


def tokenizer_folder(folder: Path, model: Path) -> Path:
    """Put the code, the package's tokenizer configuration and a model into an empty folder."""
    for file in [*ROOT.glob("tokenization_*.py"), ROOT / "tokenizer_config.json"]:
        shutil.copy(file, folder)
    shutil.copy(model, folder / "tokenizer.model")
    return folder


def small_folder(folder: Path) -> Path:
    """Put the code, a small model and its configuration into an empty folder."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=RENAMED,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "trained.model").write_bytes(model.getvalue())
    tokenizer_folder(folder, folder / "trained.model")

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = {name: pieces.piece_to_id(name) for name in ("<unk>", "<s>", "</s>")}
    ids |= {name: pieces.piece_to_id(piece) for name, piece in zip(RENAMED_TO, RENAMED, strict=False)}
    ids |= {name: pieces.get_piece_size() + offset for offset, name in enumerate(BEHIND)}
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8"))
    config["added_tokens_decoder"] = {
        str(index): {"content": name, "special": True, "normalized": False} for name, index in ids.items()
    }
    config["additional_special_tokens"] = RENAMED_TO + BEHIND
    config_file.write_text(json.dumps(config), "utf-8")
    return folder


def random_text(rng: random.Random, tokenizer: Any) -> str:
    """Return a text of pieces, added tokens, halves of them and rare characters; the tokenizer is the slow one."""
    added = list(tokenizer.get_added_vocab())
    fragments = [
        lambda: tokenizer.sp_model.id_to_piece(rng.randrange(259, tokenizer.vocab_size)).replace("▁", " "),
        lambda: rng.choice(added),
        lambda: rng.choice(added)[: rng.randint(1, 6)],
        lambda: rng.choice([" ", "  ", "\n", "\t", "\r\n", "\u3000", "\u200d", "▁", " ,", " 's", " ' ", " n't", " !"]),
        lambda: rng.choice(RENAMED + ["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_", "<0x0A>", "<image>", "<|", "|>"]),
        lambda: chr(rng.choice([rng.randint(1, 0x2FF), rng.randint(0x300, 0xD7FF), rng.randint(0xE000, 0x1FFFF)])),
        lambda: str(rng.randint(0, 10**6)),
    ]
    return "".join(rng.choice(fragments)() for _ in range(rng.randint(0, 16)))
