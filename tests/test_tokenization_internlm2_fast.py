"""The fast tokenizer against the slow one, against the official records, and through what needs a fast one."""

import copy
import json
import multiprocessing
import pickle
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from internvl_chat import tokenization_internlm2
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from internvl_chat.tokenization_internlm2_fast import InternLM2TokenizerFast, fast_backend
from tokenizer_scenes import RENAMED, ROOT, random_text, small_folder, tokenizer_folder
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast, TextIteratorStreamer

from examples.fast_tokenizer import write_fast_tokenizer


OFFICIAL = {"spaces_between_special_tokens": True}
TEXT = "<|im_start|>the cat's 你好 ,<img><IMG_CONTEXT></img>\n龘 🐼<|im_end|>"


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture
def slow(small_checkpoint) -> InternLM2Tokenizer:
    return InternLM2Tokenizer.from_pretrained(small_checkpoint)


@pytest.fixture
def fast(small_checkpoint) -> InternLM2TokenizerFast:
    return InternLM2TokenizerFast.from_pretrained(small_checkpoint)


@pytest.fixture(scope="module")
def published(goldens, tmp_path_factory) -> tuple[InternLM2Tokenizer, InternLM2TokenizerFast]:
    folder = tokenizer_folder(tmp_path_factory.mktemp("published"), goldens / "tokenizer" / "tokenizer.model")
    return InternLM2Tokenizer.from_pretrained(folder), InternLM2TokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def records(goldens) -> dict:
    return json.loads((goldens / "tokenizer_goldens" / "tokenizer_goldens.json").read_text("utf-8"))


def assert_same_tokenizer(slow, fast, rounds: int) -> None:
    """Compare ids, tokens and official text on random texts and ids; renamed pieces and NUL are known to differ."""
    assert len(fast) == len(slow)
    assert fast.vocab_size == slow.vocab_size
    assert fast.get_vocab() == slow.get_vocab()
    assert fast.all_special_tokens == slow.all_special_tokens
    assert fast.get_added_vocab() == slow.get_added_vocab()
    assert fast.added_tokens_decoder == slow.added_tokens_decoder
    rng = random.Random(0)
    for _ in range(rounds):
        text = random_text(rng, slow)
        if "[UNUSED_TOKEN_" in text or "\0" in text:
            continue
        ids = slow(text)["input_ids"]
        assert fast(text)["input_ids"] == ids, repr(text)
        assert fast.tokenize(text) == slow.tokenize(text)
        noise = [rng.randrange(len(slow)) for _ in range(rng.randint(0, 8))]
        for some_ids in (ids, noise + ids[1:4] + noise):
            assert fast.convert_ids_to_tokens(some_ids) == slow.convert_ids_to_tokens(some_ids)
            for skip in (False, True):
                expected = slow.decode(some_ids, skip_special_tokens=skip)
                assert fast.decode(some_ids, skip_special_tokens=skip, **OFFICIAL) == expected, some_ids


# Against the slow tokenizer and the official records.


def test_small_vocabulary(slow, fast):
    assert_same_tokenizer(slow, fast, rounds=500)


def test_tiny(tiny_folder):
    slow, fast = (
        kind.from_pretrained(ROOT, subfolder="tiny") for kind in (InternLM2Tokenizer, InternLM2TokenizerFast)
    )
    assert_same_tokenizer(slow, fast, rounds=300)
    assert (slow.model_max_length, fast.model_max_length) == (4096, 4096)


def test_published_vocabulary(published):
    assert_same_tokenizer(*published, rounds=1000)


def test_every_recorded_string(published, records):
    _, fast = published
    differing = []
    for row in records["rows"]:
        text, ids, bare = row["text"], row["ids"], row["ids_no_special"]
        if fast(text)["input_ids"] != ids:
            differing.append(text)
        assert fast.decode(fast(text)["input_ids"]) == "<s>" + text.replace("▁", " ")
        assert fast.decode(ids, **OFFICIAL) == row["decode"], repr(text)
        assert fast.decode(ids, skip_special_tokens=True, **OFFICIAL) == row["decode_skip_special"], repr(text)
        assert fast.decode(bare, **OFFICIAL) == row["decode_of_no_special"], repr(text)
    # Typed, these pieces stay text. (NUL is the official piece here, whatever SentencePiece makes of it.)
    assert differing == ["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_1]"]
    assert fast.decode(fast("[UNUSED_TOKEN_145]")["input_ids"], skip_special_tokens=True) == "[UNUSED_TOKEN_145]"


def test_recorded_ids(published, records):
    _, fast = published
    misc = records["misc"]
    for index, text in misc["single_id_decode"].items():
        assert fast.decode([int(index)], **OFFICIAL) == text
    for index, token in misc["id_to_token"].items():
        assert fast.convert_ids_to_tokens(int(index)) == token
    for token, index in misc["token_to_id"].items():
        index = fast.unk_token_id if token == "[UNUSED_TOKEN_145]" else index
        assert fast.convert_tokens_to_ids(token) == index
    for row in misc["random_id_decode"]:
        assert fast.decode(row["ids"], **OFFICIAL) == row["decode"]
        assert fast.decode(row["ids"], skip_special_tokens=True, **OFFICIAL) == row["decode_skip_special"]
    assert fast("Hello", "World")["input_ids"] == misc["pair"]["ids"]
    ids = misc["streaming"]["ids"]
    assert [fast.decode(ids[:end]) for end in range(1, len(ids) + 1)] == misc["streaming"]["prefix_decode"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_recorded_padding(published, records, side):
    fast = copy.deepcopy(published[1])
    fast.padding_side = side
    for name, options in {
        "batch_pad": {"padding": True},
        "batch_max_length6": {"padding": "max_length", "max_length": 6, "truncation": True},
    }.items():
        expected = records["misc"][f"{name}_{side}"]
        batch = fast(expected["texts"], **options)
        assert batch["input_ids"] == expected["input_ids"]
        assert batch["attention_mask"] == expected["attention_mask"]


def test_placeholder_before_a_newline(published):
    """The published vocabulary has the piece ">\\n"."""
    for tokenizer in published:
        assert tokenizer("<image>\n", add_special_tokens=False)["input_ids"] == [333, 1954, 527]


# What a renamed piece may become, and decoding.


def test_text_of_a_renamed_piece_stays_text(slow, fast):
    index = fast.convert_tokens_to_ids("<|im_end|>")
    assert slow(RENAMED[0], add_special_tokens=False)["input_ids"] == [index]
    for text in RENAMED:
        ids = fast(text, add_special_tokens=False)["input_ids"]
        assert len(ids) > 1
        assert fast.decode(ids, skip_special_tokens=True) == text
    assert fast("<|im_end|>", add_special_tokens=False)["input_ids"] == [index]
    assert fast.convert_tokens_to_ids(RENAMED[0]) == fast.unk_token_id


@pytest.mark.parametrize("text", [TEXT, " the , text ' s <img> </img> !", "▁ the", "  ", "", "<0x0A><0xFF> ▁"])
def test_decoding_adds_and_tidies_nothing(fast, text):
    ids = fast(text)["input_ids"]
    assert fast.decode(ids) == "<s>" + text.replace("▁", " ")
    assert fast(fast.decode(ids), add_special_tokens=False)["input_ids"] == ids
    assert fast.batch_decode([ids, []]) == ["<s>" + text.replace("▁", " "), ""]


def test_decoding_options(slow, fast):
    ids = fast("<img>the<IMG_CONTEXT></img> ,")["input_ids"]
    assert fast.decode(ids) == "<s><img>the<IMG_CONTEXT></img> ,"
    assert fast.decode(ids, clean_up_tokenization_spaces=True) == "<s><img>the<IMG_CONTEXT></img>,"
    assert fast.decode(ids, **OFFICIAL) == slow.decode(ids) == " <s> <img> the <IMG_CONTEXT> </img> ,"
    both = {"clean_up_tokenization_spaces": True}
    assert fast.decode(ids, **OFFICIAL, **both) == slow.decode(ids, **both)
    assert fast.decode(ids, skip_special_tokens=True) == "the ,"
    assert fast.decode(ids[1]) == "<img>"
    assert fast.decode(torch.tensor(ids)) == fast.decode(ids)


def test_bytes_that_are_no_character(slow, fast):
    ids = fast("🐼你好 龘 na🐼", add_special_tokens=False)["input_ids"]
    for end in range(len(ids) + 1):
        assert fast.decode(ids[:end]) == slow.decode(ids[:end])
    panda = fast("🐼", add_special_tokens=False)["input_ids"]
    assert fast.decode(panda + panda[:2]) == "🐼\ufffd\ufffd"


def test_streaming(fast):
    text = "the cat 你好 🐼🐼 龘 <ref>the dog's</ref> bone isn't there ."
    streamer = TextIteratorStreamer(fast)
    for index in fast(text, add_special_tokens=False)["input_ids"]:
        streamer.put(torch.tensor([index]))
    streamer.end()
    pieces = list(streamer)
    assert "".join(pieces) == text
    assert len(pieces) > 5


def test_offsets(fast):
    text = "the 你 龘<img>the"
    encoded = fast(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert spans == ["the", " ", "你", " ", "龘", "龘", "龘", "<img>", "the"]
    assert encoded.char_to_token(text.index("<img>")) == 7


# Like the slow one in everything else.


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_special_tokens(small_checkpoint, bos, eos):
    options = {"add_bos_token": bos, "add_eos_token": eos}
    fast = InternLM2TokenizerFast.from_pretrained(small_checkpoint, **options)
    encoded = fast("the", "cat", return_special_tokens_mask=True, return_token_type_ids=True)
    plain = fast("the", "cat", add_special_tokens=False)["input_ids"]
    assert encoded["input_ids"] == [1] * bos + plain + [2] * eos
    assert encoded["special_tokens_mask"] == [1] * bos + [0] * len(plain) + [1] * eos
    assert encoded["token_type_ids"] == [0] * len(encoded["input_ids"])
    assert fast.build_inputs_with_special_tokens(plain) == encoded["input_ids"]
    mask = fast.get_special_tokens_mask(encoded["input_ids"], already_has_special_tokens=True)
    assert mask == encoded["special_tokens_mask"]


def test_special_tokens_can_be_switched(fast):
    plain = fast("the", add_special_tokens=False)["input_ids"]
    fast.add_eos_token, fast.add_bos_token = True, False
    assert fast("the")["input_ids"] == [*plain, 2]
    assert (fast.add_bos_token, fast.add_eos_token) == (False, True)


def test_added_tokens(slow, fast, tmp_path):
    tokens = ["<seg>", AddedToken("zebra", single_word=True), AddedToken("▁x<0x41>", normalized=False)]
    for tokenizer in (slow, fast):
        tokenizer.add_tokens(copy.deepcopy(tokens))
        tokenizer.add_tokens(["<sp>"], special_tokens=True)
    text = "the<seg> cat<sp>, zebra thezebra ▁x<0x41>!"
    fast.save_pretrained(tmp_path / "fast")
    slow.save_pretrained(tmp_path / "slow")
    expected = slow(text)["input_ids"]
    skipped = slow.decode(expected, skip_special_tokens=True)
    assert "<sp>" not in skipped
    loaded = [
        kind.from_pretrained(tmp_path / folder)
        for kind in (InternLM2Tokenizer, InternLM2TokenizerFast)
        for folder in ("slow", "fast")
    ]
    for tokenizer in (fast, *loaded):
        assert tokenizer(text)["input_ids"] == expected
        assert tokenizer.get_added_vocab() == slow.get_added_vocab()
        assert tokenizer.decode(expected, **OFFICIAL) == slow.decode(expected)
        assert tokenizer.decode(expected, skip_special_tokens=True, **OFFICIAL) == skipped
        assert tokenizer.convert_tokens_to_ids(["<seg>", "<sp>"]) == slow.convert_tokens_to_ids(["<seg>", "<sp>"])
    assert fast.decode(fast(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("duplicate", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy], ids=["pickle", "copy"])
def test_copies_answer_alike(fast, duplicate):
    assert duplicate(fast)(TEXT)["input_ids"] == fast(TEXT)["input_ids"]
    assert duplicate(fast).decode(fast(TEXT)["input_ids"]) == "<s>" + TEXT


def test_threads(slow, fast):
    """Threads may share it, as a server's do, as long as all of them pad and truncate alike."""
    rng = random.Random(3)
    texts = [random_text(rng, slow).translate({0: None}).replace("[UNUSED", "[") for _ in range(200)]
    expected = [fast(text)["input_ids"] for text in texts]
    decoded = [fast.decode(ids) for ids in expected]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: fast(text)["input_ids"], texts))
        assert list(pool.map(fast.decode, found)) == decoded
    assert found == expected


def test_another_process(small_checkpoint):
    """Added tokens and settings go along."""
    tokenizer = AutoTokenizer.from_pretrained(small_checkpoint, trust_remote_code=True)
    tokenizer.add_tokens(["<seg>"])
    tokenizer.add_bos_token, tokenizer.add_eos_token = False, True
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        ids = pool.submit(tokenizer.encode, "the<seg>").result(timeout=600)
    assert ids == tokenizer.encode("the<seg>")
    assert ids[1:] == [len(tokenizer) - 1, 2]


def test_training_another_vocabulary(fast, tmp_path):
    """Not the files that the old one was loaded from."""
    new = fast.train_new_from_iterator(["zebra zoo"] * 9, 400)
    assert new.tokenize("zebra") != fast.tokenize("zebra")
    assert "<|im_end|>" in new.all_special_tokens
    new.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "tokenizer.model").exists()
    again = InternLM2TokenizerFast.from_pretrained(tmp_path / "new")
    assert again("zebra<|im_end|>")["input_ids"] == new("zebra<|im_end|>")["input_ids"]


@pytest.mark.parametrize("index", [-100, 10**6])
def test_what_is_not_an_id(slow, fast, index):
    for tokenizer in (slow, fast):
        message = f"The id {index} is not in the vocabulary of {len(tokenizer)} tokens. Leave out .* the -100 of lab"
        with pytest.raises(ValueError, match=message):
            tokenizer.decode([1, index])


# Loading and saving.


def test_auto_tokenizer_loads_and_saves_it(small_checkpoint, slow, tmp_path):
    loaded = AutoTokenizer.from_pretrained(small_checkpoint, trust_remote_code=True)
    loaded.save_pretrained(tmp_path / "saved")
    files = {file.name for file in (tmp_path / "saved").iterdir()}
    assert {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"} <= files
    assert {"tokenization_internlm2.py", "tokenization_internlm2_fast.py"} <= files
    again = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    for tokenizer in (loaded, again):
        assert tokenizer.is_fast
        assert type(tokenizer).__name__ == "InternLM2TokenizerFast"
        assert tokenizer(TEXT)["input_ids"] == slow(TEXT)["input_ids"]
        assert tokenizer.all_special_tokens == slow.all_special_tokens
        assert tokenizer.model_max_length == 32768
    back = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=True, backend="sentencepiece")
    assert type(back).__name__ == "InternLM2Tokenizer"
    assert back(TEXT)["input_ids"] == slow(TEXT)["input_ids"]
    assert sorted(back.all_special_tokens) == sorted(slow.all_special_tokens)
    saved_model = (tmp_path / "saved" / "tokenizer.model").read_bytes()
    assert saved_model == (small_checkpoint / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("kind", [InternLM2Tokenizer, InternLM2TokenizerFast])
def test_saved_settings(small_checkpoint, tmp_path, kind):
    """Some releases save neither the added tokens by id, which engines read, nor whether <s> and </s> are added."""
    kind.from_pretrained(small_checkpoint, add_bos_token=False, add_eos_token=True).save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text("utf-8"))
    given = json.loads((small_checkpoint / "tokenizer_config.json").read_text("utf-8"))["added_tokens_decoder"]
    saved = {index: token["content"] for index, token in settings["added_tokens_decoder"].items()}
    assert saved == {index: token["content"] for index, token in given.items()}
    again = kind.from_pretrained(tmp_path / "saved")
    assert again("the")["input_ids"] == [*again("the", add_special_tokens=False)["input_ids"], 2]
    assert (again.add_bos_token, again.add_eos_token) == (False, True)


@pytest.mark.parametrize("named", [True, False], ids=["this package's", "published"])
def test_published_folder(goldens, tmp_path, named):
    """It has no tokenizer.json, and its own tokenizer_config.json names the slow tokenizer alone."""
    folder = tokenizer_folder(tmp_path, goldens / "tokenizer" / "tokenizer.model")
    if not named:
        shutil.copy(goldens / "tokenizer" / "tokenizer_config.json", folder)
    default, reference = (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True, **options)
        for options in ({}, {"backend": "sentencepiece"})
    )
    converted = InternLM2TokenizerFast.from_pretrained(folder)
    assert [tokenizer.is_fast for tokenizer in (default, reference, converted)] == [named, False, True]
    for tokenizer in (default, converted):
        assert tokenizer(TEXT)["input_ids"] == reference(TEXT)["input_ids"]
        assert len(tokenizer) == 92553


@pytest.mark.parametrize("options", [{"use_fast": False}, {"backend": "sentencepiece"}])
def test_the_slow_one_on_request(small_checkpoint, options):
    assert type(InternLM2TokenizerFast.from_pretrained(small_checkpoint, **options)) is InternLM2Tokenizer


def swap_two_pieces(saved):
    vocabulary = saved["model"]["vocab"]
    vocabulary["the"], vocabulary["▁cat"] = vocabulary["▁cat"], vocabulary["the"]


def rename_a_token(saved):
    saved["added_tokens"][-1]["content"] = "<IMG>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_two_pieces, "the piece '(the|▁cat)' has the id [0-9]+ there and [0-9]+ in tokenizer.model"),
        (rename_a_token, "the token '<IMG_CONTEXT>' has the id [0-9]+ there and [0-9]+ in tokenizer_config.json"),
        (lambda saved: saved["model"]["merges"].clear(), "the text .* has other ids there than in tokenizer.model"),
        (lambda saved: saved.update(normalizer=None), "the text .* has other ids there than in tokenizer.model"),
    ],
    ids=["pieces", "token", "merges", "normalizer"],
)
def test_files_that_disagree(small_checkpoint, tmp_path, change, message):
    folder = shutil.copytree(small_checkpoint, tmp_path / "folder")
    file = write_fast_tokenizer(folder)
    saved = json.loads(file.read_text("utf-8"))
    change(saved)
    file.write_text(json.dumps(saved), "utf-8")
    with pytest.raises(ValueError, match=f"does not belong to the files beside it: {message}. Delete what is wrong;"):
        InternLM2TokenizerFast.from_pretrained(folder)
    assert InternLM2Tokenizer.from_pretrained(folder)("the")["input_ids"]


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1", "{}", '{"version": "1.0", "trunc'])
def test_unusable_file_is_named(small_checkpoint, tmp_path, content):
    folder = shutil.copytree(small_checkpoint, tmp_path / "folder")
    (folder / "tokenizer.json").write_text(content)
    message = rf"\({len(content)} bytes\) is not a tokenizer.json: .*Git LFS pointer: download it again, or delete it"
    with pytest.raises(ValueError, match=message):
        InternLM2TokenizerFast.from_pretrained(folder)


def test_without_sentencepiece(small_checkpoint, tmp_path, fast, monkeypatch):
    folder = shutil.copytree(small_checkpoint, tmp_path / "folder")
    monkeypatch.setattr(tokenization_internlm2, "SentencePieceProcessor", None)
    with pytest.raises(ImportError, match="The tokenizer needs sentencepiece, which is not installed"):
        InternLM2TokenizerFast.from_pretrained(folder)
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))
    assert InternLM2TokenizerFast.from_pretrained(folder)(TEXT)["input_ids"] == fast(TEXT)["input_ids"]


def test_tokens_that_hide_a_probe(small_checkpoint, tmp_path):
    """A developer's token may be any word, a blank among them."""
    fast = InternLM2TokenizerFast.from_pretrained(small_checkpoint)
    fast.add_tokens(["cat", "  ", "你"])
    fast.save_pretrained(tmp_path / "saved")
    again = InternLM2TokenizerFast.from_pretrained(tmp_path / "saved")
    assert again("the cat  你")["input_ids"] == fast("the cat  你")["input_ids"]


def test_unknown_backend(small_checkpoint):
    with pytest.raises(ValueError, match="backend is 'slow'; expected 'tokenizers' .default. or 'sentencepiece'"):
        InternLM2TokenizerFast.from_pretrained(small_checkpoint, backend="slow")


def test_folder_without_code_or_model(small_checkpoint, slow, tmp_path):
    """Engines read tokenizer.json alone, with Transformers' own class."""
    folder = shutil.copytree(small_checkpoint, tmp_path / "folder", ignore=shutil.ignore_patterns("*.py"))
    write_fast_tokenizer(folder)
    plain = PreTrainedTokenizerFast.from_pretrained(folder)
    own = InternLM2TokenizerFast.from_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    alone = InternLM2TokenizerFast.from_pretrained(folder)
    for tokenizer in (plain, own, alone):
        ids = tokenizer(TEXT)["input_ids"]
        assert ids == slow(TEXT)["input_ids"]
        assert tokenizer.decode(ids) == "<s>" + TEXT
    alone.save_pretrained(tmp_path / "alone")
    assert not (tmp_path / "alone" / "tokenizer.model").exists()


def test_command_makes_the_file_again(small_checkpoint, tmp_path):
    folder = shutil.copytree(small_checkpoint, tmp_path / "folder")
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8"))
    config["auto_map"]["AutoTokenizer"][1] = None
    config_file.write_text(json.dumps(config), "utf-8")
    first = write_fast_tokenizer(folder).read_bytes()
    (folder / "tokenizer.json").write_text("{}")
    assert write_fast_tokenizer(folder).read_bytes() == first
    named = json.loads(config_file.read_text("utf-8"))["auto_map"]["AutoTokenizer"]
    assert named[1] == "tokenization_internlm2_fast.InternLM2TokenizerFast"
    (folder / "tokenizer.model").write_text("no model")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        write_fast_tokenizer(folder)
    assert (folder / "tokenizer.json").read_bytes() == first


def test_tiny_has_its_own(tmp_path):
    shutil.copytree(ROOT / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("*.safetensors"))
    made = json.loads(write_fast_tokenizer(tmp_path / "tiny").read_text("utf-8"))
    assert made["model"] == json.loads((ROOT / "tiny" / "tokenizer.json").read_text("utf-8"))["model"]


def test_model_that_is_gone_is_named(small_checkpoint, tmp_path, caplog):
    shutil.copytree(small_checkpoint, tmp_path / "first")
    fast = InternLM2TokenizerFast.from_pretrained(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    caplog.set_level("WARNING")
    fast.save_pretrained(tmp_path / "saved")
    assert "tokenizer.model is gone" in caplog.text
    assert InternLM2TokenizerFast.from_pretrained(tmp_path / "saved")(TEXT)["input_ids"] == fast(TEXT)["input_ids"]


def test_missing_model_is_named(small_checkpoint, tmp_path):
    shutil.copy(small_checkpoint / "tokenizer_config.json", tmp_path)
    with pytest.raises(ValueError, match="needs the SentencePiece model tokenizer.model, but the checkpoint has no"):
        InternLM2TokenizerFast.from_pretrained(tmp_path)


def test_gaps_between_added_tokens_are_named(small_checkpoint, slow):
    tokens = {slow.vocab_size + 7: AddedToken("<far>", special=True)}
    message = (
        f"'<far>' has the id {slow.vocab_size + 7}, which the fast tokenizer can only give it as {slow.vocab_size}"
    )
    with pytest.raises(ValueError, match=message):
        fast_backend(str(small_checkpoint / "tokenizer.model"), tokens)


def test_chat_template_marks_answers(fast):
    messages = [{"role": "user", "content": "the cat"}]
    template = "{% for m in messages %}<|im_start|>{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    encoded = fast.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded["assistant_masks"] == [0, 1, 1]


def test_the_page(tiny_folder, tmp_path):
    """The blocks of docs/tokenizer.md run in order, on a folder as it is published."""
    page = (ROOT / "docs" / "tokenizer.md").read_text("utf-8")
    folder = shutil.copytree(tiny_folder, tmp_path / "folder", ignore=shutil.ignore_patterns("tokenizer.json"))
    kinds = re.findall(r"```(\w+)\n", page)
    loading, making, training = re.findall(r"```\w+\n(.*?)```", page, flags=re.DOTALL)
    assert (kinds, making) == (["python", "bash", "python"], "python -m examples.fast_tokenizer InternVL-Chat-V1-5\n")
    names = {}
    exec(loading.replace('"InternVL-Chat-V1-5"', repr(str(folder))), names)
    assert (names["fast"].is_fast, names["slow"].is_fast) == (True, False)
    subprocess.run([sys.executable, *making.split()[1:-1], str(folder)], cwd=ROOT, check=True)
    assert (folder / "tokenizer.json").is_file()
    exec(training, names)
