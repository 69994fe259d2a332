"""The tokenizer against the official ids and texts, against a plain restatement of its rules, and on a small model."""

import copy
import json
import pickle
import random
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
from internvl_chat import tokenization_internlm2
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer, logger, pop_special_tokens
from tokenizer_scenes import BEHIND, RENAMED_TO, ROOT, random_text, small_folder, tokenizer_folder
from transformers import AddedToken, AutoTokenizer, dynamic_module_utils


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def published_checkpoint(goldens, tmp_path_factory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("published"), goldens / "tokenizer" / "tokenizer.model")


@pytest.fixture
def small(small_checkpoint) -> InternLM2Tokenizer:
    return InternLM2Tokenizer.from_pretrained(small_checkpoint)


@pytest.fixture(scope="module")
def published(published_checkpoint) -> InternLM2Tokenizer:
    return InternLM2Tokenizer.from_pretrained(published_checkpoint)


@pytest.fixture(scope="module")
def official(goldens) -> dict:
    return json.loads((goldens / "tokenizer_goldens" / "tokenizer_goldens.json").read_text("utf-8"))


class PlainTokenizer:
    """The official rules restated on SentencePiece alone."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        self.names = {int(index): token["content"] for index, token in config["added_tokens_decoder"].items()}
        self.ids = {name: index for index, name in self.names.items()}
        self.splitter = re.compile("(" + "|".join(map(re.escape, self.ids)) + ")")
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

    def encode(self, text: str) -> list[int]:
        ids = [self.ids["<s>"]]
        for part in self.splitter.split(text):
            ids += [self.ids[part]] if part in self.ids else self.pieces.encode(part)
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        parts, chunk = [], []
        for index in ids:
            if skip_special_tokens and index in self.names:
                continue
            if index < self.pieces.get_piece_size():
                chunk.append(index)
            else:
                parts += [self.decode_chunk(chunk), self.names[index]]
                chunk = []
        parts.append(self.decode_chunk(chunk))
        return (" " if spaces_between_special_tokens else "").join(part for part in parts if part)

    def decode_chunk(self, ids: list[int]) -> str:
        text, plain, after_special = "", [], False
        for index in ids:
            special = index in self.names
            if special:
                text += " " * (not after_special) + self.pieces.decode(plain) + self.names[index]
                plain = []
            else:
                plain.append(index)
            after_special = special
        text += self.pieces.decode(plain)
        for mark in ".?!,":
            text = text.replace(" " + mark, mark)
        text = text.replace(" ' ", "'")
        for ending in ("n't", "'m", "'s", "'ve", "'re"):
            text = text.replace(" " + ending, ending)
        return text


def assert_follows_plain_rules(tokenizer: InternLM2Tokenizer, folder: Path, rounds: int) -> None:
    plain = PlainTokenizer(folder)
    rng = random.Random(0)
    for _ in range(rounds):
        text = random_text(rng, tokenizer)
        ids = tokenizer(text)["input_ids"]
        assert ids == plain.encode(text), repr(text)
        noise = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(0, 8))]
        for some_ids in (ids, noise + ids[1:4] + noise):
            for skip in (False, True):
                for spaces in (False, True):
                    decoded = tokenizer.decode(
                        some_ids, skip_special_tokens=skip, spaces_between_special_tokens=spaces
                    )
                    assert decoded == plain.decode(some_ids, skip, spaces), some_ids


# Against the recorded answers of the official tokenizer.


def test_every_recorded_string(published, official):
    # Newer SentencePiece spells NUL by its byte instead of the piece for it.
    nul = {
        text: [[1, *ids] for ids in answers.values()]
        for text, answers in official["misc"]["sentencepiece_0.2.3_differs"].items()
    }
    assert len(official["rows"]) == 186
    for row in official["rows"]:
        text, ids, bare = row["text"], row["ids"], row["ids_no_special"]
        encoded = published(text)["input_ids"]
        assert encoded in nul.get(text, [ids]), repr(text)
        assert published(text, add_special_tokens=False)["input_ids"] == encoded[1:]
        assert published.decode(ids) == row["decode"], repr(text)
        assert published.decode(ids, skip_special_tokens=True) == row["decode_skip_special"], repr(text)
        assert published.decode(ids, spaces_between_special_tokens=False) == row["decode_no_spaces_between"]
        assert published.decode(bare) == row["decode_of_no_special"], repr(text)
        assert published.decode(bare, skip_special_tokens=True) == row["decode_of_no_special_skip"], repr(text)


def test_recorded_single_ids(published, official):
    misc = official["misc"]
    for index, text in misc["single_id_decode"].items():
        assert published.decode([int(index)]) == published.decode(int(index)) == text
    for index, text in misc["single_id_decode_skip_special"].items():
        assert published.decode([int(index)], skip_special_tokens=True) == text
    for index, token in misc["id_to_token"].items():
        assert published.convert_ids_to_tokens(int(index)) == token
    for token, index in misc["token_to_id"].items():
        assert published.convert_tokens_to_ids(token) == index


def test_recorded_random_ids_and_streaming(published, official):
    for row in official["misc"]["random_id_decode"]:
        assert published.decode(row["ids"]) == row["decode"]
        assert published.decode(row["ids"], skip_special_tokens=True) == row["decode_skip_special"]
    streaming = official["misc"]["streaming"]
    prefixes = [published.decode(streaming["ids"][:length]) for length in range(1, len(streaming["ids"]) + 1)]
    assert prefixes == streaming["prefix_decode"]


def test_recorded_sizes_and_special_tokens(published, official):
    misc = official["misc"]
    assert (len(published), published.vocab_size) == (misc["len"], misc["vocab_size"])
    assert len(published.get_vocab()) == misc["len_get_vocab"]
    assert published.all_special_tokens == misc["all_special_tokens"]
    assert published.all_special_ids == misc["all_special_ids"]
    ids = {"bos": published.bos_token_id, "eos": published.eos_token_id}
    ids |= {"pad": published.pad_token_id, "unk": published.unk_token_id}
    assert ids == misc["ids"]
    assert published.padding_side == misc["padding_side_default"]
    assert published("Hello", "World")["input_ids"] == misc["pair"]["ids"]
    assert published.convert_tokens_to_ids("<|im_end|>") == 92542


@pytest.mark.parametrize("side", ["left", "right"])
def test_recorded_padding(published_checkpoint, official, side):
    tokenizer = InternLM2Tokenizer.from_pretrained(published_checkpoint, padding_side=side)
    for name, options in {
        "batch_pad": {"padding": True},
        "batch_max_length6": {"padding": "max_length", "max_length": 6, "truncation": True},
    }.items():
        expected = official["misc"][f"{name}_{side}"]
        batch = tokenizer(expected["texts"], **options)
        assert batch["input_ids"] == expected["input_ids"]
        assert batch["attention_mask"] == expected["attention_mask"]


def test_recorded_added_bos_and_eos(published_checkpoint, official):
    with_eos = InternLM2Tokenizer.from_pretrained(published_checkpoint, add_eos_token=True)
    assert with_eos("Hello")["input_ids"] == official["misc"]["add_eos_token"]
    without_bos = InternLM2Tokenizer.from_pretrained(published_checkpoint, add_bos_token=False)
    assert without_bos("Hello")["input_ids"] == official["misc"]["add_bos_token_false"]


def test_published_vocabulary_follows_plain_rules(published, published_checkpoint):
    assert_follows_plain_rules(published, published_checkpoint, rounds=1000)


def test_configuration_has_the_published_tokens(goldens):
    ours = json.loads((ROOT / "tokenizer_config.json").read_text("utf-8"))
    theirs = json.loads((goldens / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    changed = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    assert changed == {"auto_map", "chat_template", "model_max_length"}


# On a small model trained here.


def test_small_vocabulary_follows_plain_rules(small, small_checkpoint):
    assert_follows_plain_rules(small, small_checkpoint, rounds=500)


def test_ids_of_a_prompt(small):
    tokens = small.convert_ids_to_tokens(small("<|im_start|>the cat<img></img>\n龘")["input_ids"])
    assert tokens == ["<s>", "<|im_start|>", "the", "▁cat", "<img>", "</img>", "<0x0A>", "<0xE9>", "<0xBE>", "<0x98>"]


def test_renamed_piece_and_its_name_share_an_id(small):
    index = small.convert_tokens_to_ids("<|im_end|>")
    assert small.convert_tokens_to_ids("[UNUSED_TOKEN_0]") == index < small.vocab_size
    assert small("[UNUSED_TOKEN_0]", add_special_tokens=False)["input_ids"] == [index]
    assert small.convert_ids_to_tokens(index) == "<|im_end|>"


def test_vocabulary_has_each_id_once(small):
    vocabulary = small.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(small)))
    assert len(small) == small.vocab_size + len(BEHIND)
    assert "[UNUSED_TOKEN_0]" not in vocabulary
    assert vocabulary["<img>"] == small.vocab_size


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([], ""),
        (["the", "▁cat"], "the cat"),
        (["<s>", "the"], " <s>the"),
        (["the", "</s>"], " the</s>"),
        (["<s>", "<|im_start|>", "the", "<|im_end|>", "▁cat"], " <s><|im_start|> the<|im_end|> cat"),
        (["<0xE4>", "<0xBD>", "<0xA0>"], "你"),
        (["the", "▁", ",", "▁", "'", "s"], "the,'s"),
    ],
)
def test_tokens_to_string(small, tokens, text):
    assert small.convert_tokens_to_string(tokens) == text


def test_decode_options(small):
    ids = small("<img>the<IMG_CONTEXT></img> ,")["input_ids"]
    # Each part is tidied before the parts are joined; asking for it tidies the whole too.
    assert small.decode(ids) == " <s> <img> the <IMG_CONTEXT> </img> ,"
    assert small.decode(ids, clean_up_tokenization_spaces=True) == " <s> <img> the <IMG_CONTEXT> </img>,"
    assert small.decode(ids, spaces_between_special_tokens=False) == " <s><img>the<IMG_CONTEXT></img>,"
    assert small.decode(ids, skip_special_tokens=True) == "the,"
    assert small.batch_decode([ids, []], skip_special_tokens=True) == ["the,", ""]


def test_added_word_stands_apart(small):
    small.add_tokens(["zebra"])
    ids = small("thezebra", add_special_tokens=False)["input_ids"]
    assert ids[-1] == len(small) - 1
    assert small.decode(ids, skip_special_tokens=True) == "the zebra"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side(small, side):
    batch = small(["the cat sat", "the"], padding=True, padding_side=side)
    rows, masks = batch["input_ids"], batch["attention_mask"]
    pad = [small.pad_token_id] * (len(rows[0]) - 2)
    short = small("the")["input_ids"]
    assert rows[1] == (pad + short if side == "left" else short + pad)
    assert masks[1] == ([0] * len(pad) + [1, 1] if side == "left" else [1, 1] + [0] * len(pad))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_special_tokens_mask_has_the_length_of_the_sequence(small_checkpoint, bos, eos):
    tokenizer = InternLM2Tokenizer.from_pretrained(small_checkpoint, add_bos_token=bos, add_eos_token=eos)
    encoded = tokenizer("the", "cat", return_special_tokens_mask=True, return_token_type_ids=True)
    plain = tokenizer("the", "cat", add_special_tokens=False)["input_ids"]
    assert encoded["input_ids"] == [1] * bos + plain + [2] * eos
    assert encoded["special_tokens_mask"] == [1] * bos + [0] * len(plain) + [1] * eos
    assert encoded["token_type_ids"] == [0] * len(encoded["input_ids"])
    mask = tokenizer.get_special_tokens_mask(encoded["input_ids"], already_has_special_tokens=True)
    assert mask == encoded["special_tokens_mask"]


@pytest.mark.parametrize("duplicate", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy], ids=["pickle", "copy"])
def test_copies_answer_alike(small, duplicate):
    text = "<|im_start|>the 你好 龘<img>"
    assert duplicate(small)(text)["input_ids"] == small(text)["input_ids"]


def test_copy_saves_the_model_when_its_file_is_gone(small_checkpoint, tmp_path):
    shutil.copytree(small_checkpoint, tmp_path / "first")
    tokenizer = InternLM2Tokenizer.from_pretrained(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    (path,) = tokenizer.save_vocabulary(str(tmp_path), filename_prefix="kept")
    assert path == str(tmp_path / "kept-tokenizer.model")
    assert InternLM2Tokenizer(path)("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]


# Loading and saving.


def test_save_and_load_through_auto_tokenizer(small_checkpoint, small, tmp_path):
    loaded = AutoTokenizer.from_pretrained(small_checkpoint, trust_remote_code=True, backend="sentencepiece")
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    text = "<|im_start|>the cat's 你好<img><IMG_CONTEXT></img>[UNUSED_TOKEN_0] 龘"
    for tokenizer in (loaded, again):
        assert type(tokenizer).__name__ == "InternLM2Tokenizer"
        assert tokenizer(text)["input_ids"] == small(text)["input_ids"]
        assert tokenizer.all_special_tokens == small.all_special_tokens
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "the cat's 你好 龘"
        assert tokenizer.model_max_length == 32768
    saved_model = (tmp_path / "saved" / "tokenizer.model").read_bytes()
    assert saved_model == (small_checkpoint / "tokenizer.model").read_bytes()


@pytest.mark.parametrize(
    "spelling",
    [
        {"additional_special_tokens": RENAMED_TO + BEHIND, "extra_special_tokens": {}},
        {"extra_special_tokens": RENAMED_TO + BEHIND},
        {"extra_special_tokens": RENAMED_TO + BEHIND, "additional_special_tokens": None},
        {},
    ],
    ids=["version 4", "version 5", "version 5.0", "lost"],
)
def test_folder_saved_by_another_release(small_checkpoint, small, tmp_path, spelling):
    folder = shutil.copytree(small_checkpoint, tmp_path / "saved")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del config["additional_special_tokens"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | spelling), "utf-8")
    tokenizer = InternLM2Tokenizer.from_pretrained(folder)
    assert sorted(tokenizer.all_special_tokens) == sorted(small.all_special_tokens)
    assert len(tokenizer) == len(small)


def test_special_tokens_under_either_name():
    added = {7: AddedToken("<img>", special=True), 8: AddedToken("<s>", special=True), 9: AddedToken("zebra")}
    for kwargs, expected, left in [
        ({"additional_special_tokens": ["<a>"], "extra_special_tokens": {}}, ["<a>"], {}),
        ({"extra_special_tokens": ["<a>"], "additional_special_tokens": None}, ["<a>"], {}),
        (
            {"additional_special_tokens": ["<a>"], "extra_special_tokens": {"x_token": "<x>"}},
            ["<a>"],
            {"x_token": "<x>"},
        ),
        ({"extra_special_tokens": []}, [], {}),
    ]:
        assert pop_special_tokens(kwargs, without=[]) == expected
        assert kwargs.get("extra_special_tokens", {}) == left
    assert [str(token) for token in pop_special_tokens({"added_tokens_decoder": added}, without=["<s>"])] == ["<img>"]


def test_missing_model_is_named(small_checkpoint, tmp_path):
    shutil.copy(small_checkpoint / "tokenizer_config.json", tmp_path)
    with pytest.raises(
        ValueError, match="needs the SentencePiece model tokenizer.model, but the checkpoint has no such"
    ):
        InternLM2Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="absent/tokenizer.model is not a file"):
        InternLM2Tokenizer("absent/tokenizer.model")


def test_missing_sentencepiece_is_named(small_checkpoint, monkeypatch):
    """Not by the loader of remote code, which would then ask for it beside every other tokenizer too."""
    monkeypatch.setattr(tokenization_internlm2, "SentencePieceProcessor", None)
    with pytest.raises(ImportError, match="The tokenizer needs sentencepiece, which is not installed: pip install"):
        InternLM2Tokenizer.from_pretrained(small_checkpoint)
    assert "sentencepiece" not in dynamic_module_utils.get_imports(ROOT / "tokenization_internlm2.py")


def test_unusable_model_is_named(small_checkpoint, tmp_path):
    shutil.copy(small_checkpoint / "tokenizer_config.json", tmp_path)
    pointer = tmp_path / "tokenizer.model"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"\(43 bytes\) is not a SentencePiece model.*Git LFS pointer"):
        InternLM2Tokenizer.from_pretrained(tmp_path)


def test_configuration_of_the_package():
    config = json.loads((ROOT / "tokenizer_config.json").read_text("utf-8"))
    assert config["auto_map"] == {
        "AutoTokenizer": [
            "tokenization_internlm2.InternLM2Tokenizer",
            "tokenization_internlm2_fast.InternLM2TokenizerFast",
        ]
    }
    assert config["tokenizer_class"] == "InternLM2Tokenizer"
    assert config["model_max_length"] == 32768
    assert "chat_template" not in config


def test_its_chat_template_warns_that_it_guards_nothing(tokenizer, caplog):
    caplog.set_level("WARNING")
    logger.warning_once.__func__.cache_clear()  # another test may have been warned already
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    text = tokenizer.apply_chat_template(messages, chat_template="{{ messages[0]['content'] }}", tokenize=False)
    assert text == "a<|im_end|>b"
    assert "encodes control tokens typed in messages as control tokens; for text of other people, use" in caplog.text
