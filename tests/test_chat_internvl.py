"""Conversations against the official answers, and what the official code gets wrong."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer


CHAT_CASES = ("c01_v15_26b", "c02_mini_2b", "c05_v12_llama", "c06_qwen2", "c11_chat_history")
# Where the package answers differently on purpose (docs/fidelity.md).
DELIBERATE = (
    "more <image> than num_patches_list",
    "special tokens in the user text",
    "empty answer",
    "empty question",
)
SHORT = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("c01_v15_26b")


@pytest.fixture(scope="module")
def tiles(golden_case):
    return golden_case("c11_chat_history")[0]["pixel_values"]


@pytest.mark.parametrize("case", CHAT_CASES)
def test_golden_chats(case, golden_case, golden_model, tokenizer):
    tensors, record = golden_case(case)
    model = golden_model(case)
    compared = 0
    for chat in record["chats"]:
        if chat["name"].startswith(DELIBERATE):
            continue
        pixel_values = None if chat["pixel_values"] is None else tensors["pixel_values"][: chat["pixel_values"][0]]
        options = chat["generation_config_in"]
        history = None if chat["history_in"] is None else [tuple(turn) for turn in chat["history_in"]]
        answer, new_history = model.chat(
            tokenizer,
            pixel_values,
            chat["question"],
            options,
            history=history,
            return_history=True,
            num_patches_list=chat["num_patches_list"],
            system="You are a poet." if "system_message set" in chat["name"] else None,
        )
        assert answer == chat["response"], chat["name"]
        assert [list(turn) for turn in new_history] == chat["history_out"], chat["name"]
        compared += 1
    assert compared == len(record["chats"]) - (4 if case == "c11_chat_history" else 0)


def test_golden_batch_chat(golden_case, model, tokenizer):
    tensors, record = golden_case("c09_batch_chat")
    batch = record["batch_chat"]
    options = {"max_new_tokens": 24, "do_sample": False}
    tiles, counts = tensors["pixel_values"], batch["num_patches_list"]
    assert model.batch_chat(tokenizer, tiles, batch["questions"], options, counts) == batch["responses"]
    text = record["batch_chat_text_only"]
    answers = model.batch_chat(tokenizer, None, text["questions"], {**options, "max_new_tokens": 12})
    assert answers == text["responses"]


def test_batch_rows_are_the_rows_alone(model, tokenizer, tiles):
    """Different tile counts, several pictures, text alone, histories: each answer is the one that chat gives."""
    questions = ["<image>\nDescribe it.", "Image-1: <image>\nImage-2: <image>\nCompare.", "Hello!", "And now?"]
    counts = [[2], [1, 1], 0, [1]]
    histories = [None, None, None, [("<image>\nWhat is it?", "A cat.")]]
    batch = model.batch_chat(tokenizer, tiles, questions, SHORT, counts, history=histories)
    parts = [tiles[:2], tiles[2:4], None, tiles[4:]]
    alone = [
        model.chat(tokenizer, part, question, SHORT, history=history, num_patches_list=count or None)
        for part, question, count, history in zip(parts, questions, counts, histories, strict=True)
    ]
    assert batch == alone
    answers, new = model.batch_chat(tokenizer, tiles, questions, SHORT, counts, history=histories, return_history=True)
    assert answers == batch
    assert new[3] == [*histories[3], (questions[3], batch[3])]


def test_encoded_pictures_are_encoded_once(model, tokenizer, tiles):
    seen = []
    hook = model.vision_model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    one, two = model.encode_images(tiles), model.encode_images(tiles, torch.tensor([3, 2]))
    questions, counts = ["<image>\nDescribe it.", "Which?"], [[3], [2]]
    given = [
        model.chat(tokenizer, one, "Describe it.", SHORT),
        model.chat(tokenizer, two, "<image><image>", SHORT),
        model.chat(tokenizer, one, "<image><image>", SHORT, num_patches_list=[3, 2]),
        "".join(model.chat_stream(tokenizer, two, "<image> <image>", SHORT)),
        model.batch_chat(tokenizer, two, questions, SHORT, counts),
        model.batch_chat(tokenizer, two, ["<image><image>"], SHORT),
    ]
    assert seen == [5, 5]
    hook.remove()
    both = model.chat(tokenizer, tiles, "<image><image>", SHORT, num_patches_list=[3, 2])
    assert given == [
        model.chat(tokenizer, tiles, "Describe it.", SHORT),
        both,
        both,
        model.chat(tokenizer, tiles, "<image> <image>", SHORT, num_patches_list=[3, 2]),
        model.batch_chat(tokenizer, tiles, questions, SHORT, counts),
        [both],
    ]


def test_stream_is_the_answer(model, tokenizer, tiles):
    pieces = list(model.chat_stream(tokenizer, tiles, "Describe it.", SHORT))
    assert "".join(pieces) == model.chat(tokenizer, tiles, "Describe it.", SHORT)
    assert len(pieces) > 1


def test_closing_the_stream_stops_the_model(model, tokenizer, monkeypatch):
    steps = []
    forward = model.language_model.forward
    monkeypatch.setattr(
        model.language_model, "forward", lambda *args, **kwargs: steps.append(1) or forward(*args, **kwargs)
    )
    stream = model.chat_stream(tokenizer, None, "Hello", {"max_new_tokens": 2000, "do_sample": False})
    next(stream)
    stream.close()
    assert len(steps) < 1500


def test_stream_raises_what_chat_raises(model, tokenizer, tiles):
    with pytest.raises(ValueError, match="1 <image> for 2 image"):
        list(model.chat_stream(tokenizer, tiles, "<image>", SHORT, num_patches_list=[3, 2]))


def test_caller_owned_streamer(model, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = model.chat(tokenizer, None, "Hello", SHORT, streamer=streamer)
    assert "".join(streamer).strip() == answer


def test_nothing_of_the_callers_is_changed(model, tokenizer, tiles):
    options, history = dict(SHORT), [("<image>\nHi", "Hello")]
    given = copy.deepcopy((options, history))
    config = model.config.to_json_string()
    padding_side = tokenizer.padding_side
    model.chat(tokenizer, tiles, "again", options, history=history)
    model.batch_chat(tokenizer, None, ["a", "longer question"], options)
    assert (options, history) == given
    assert tokenizer.padding_side == padding_side
    assert model.config.to_json_string() == config
    object_config = GenerationConfig(**SHORT)
    before = object_config.to_dict()
    assert model.chat(tokenizer, None, "again", object_config)
    assert object_config.to_dict() == before


def test_nothing_is_printed(model, tokenizer, tiles, capsys):
    model.chat(tokenizer, tiles, "Hi", SHORT, verbose=True)
    assert capsys.readouterr().out == ""


def test_typed_control_tokens_change_nothing_but_the_text(model, tokenizer, tiles, golden_case):
    for question in ("<IMG_CONTEXT>", "a<|im_end|>b", "[UNUSED_TOKEN_145]"):
        assert isinstance(model.chat(tokenizer, tiles, question, SHORT), str)
    official = next(c for c in golden_case("c11_chat_history")[1]["chats"] if c["name"].startswith("special tokens"))
    answer = model.chat(tokenizer, None, official["question"], official["generation_config_in"])
    assert answer != official["response"]


def test_empty_question_and_answer_are_closed_turns(model, tokenizer):
    prompts = []
    original = model._answers
    model._answers = lambda tokenizer, tiles, prompt, *rest: (
        prompts.extend(prompt) or original(tokenizer, tiles, prompt, *rest)
    )
    try:
        model.chat(tokenizer, None, "", SHORT, history=[("Hi", "")])
    finally:
        del model._answers
    turns = "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n<|im_end|><|im_start|>user\n<|im_end|>"
    expected = tokenizer(turns + "<|im_start|>assistant\n", add_special_tokens=False).input_ids
    assert prompts[0][-len(expected) :] == expected


def test_system_message_of_call_model_and_config(golden_model, tokenizer):
    model = golden_model("c01_v15_26b", fresh=True)
    trained = model.system_message
    assert trained.startswith("你是由上海人工智能实验室")
    poet = model.chat(tokenizer, None, "Hello", SHORT, system="You are a poet.")
    model.system_message = "You are a poet."
    assert model.chat(tokenizer, None, "Hello", SHORT) == poet
    assert json.loads(model.config.to_json_string())["system_message"] == "You are a poet."
    model.system_message = None
    assert model.system_message == trained
    assert golden_model("c06_qwen2").system_message == "You are a careful assistant."


def test_generation_options(model, tokenizer):
    long = model.chat(tokenizer, None, "Hello", {"max_new_tokens": 30, "do_sample": False})
    dictionary = model.chat(tokenizer, None, "Hello", {**SHORT, "return_dict_in_generate": True})
    assert dictionary == model.chat(tokenizer, None, "Hello", SHORT)
    assert model.chat(tokenizer, None, "Hello", {**SHORT, "num_beams": 2, "num_return_sequences": 2})
    # A caller's own end is respected: stop at the first token of the answer.
    first = tokenizer(long, add_special_tokens=False).input_ids[0]
    stopped = model.chat(tokenizer, None, "Hello", {"max_new_tokens": 30, "do_sample": False, "eos_token_id": first})
    assert len(stopped) < len(long)


def test_counts_may_be_the_image_processors_tensor(model, tokenizer, tiles):
    question, counts = "<image><image>", torch.tensor([3, 2])
    answer = model.chat(tokenizer, tiles, question, SHORT, num_patches_list=counts)
    assert answer == model.chat(tokenizer, tiles, question, SHORT, num_patches_list=[3, 2])
    assert model.batch_chat(tokenizer, tiles, ["a", "b"], SHORT, counts)


def test_no_autograd(model, tokenizer, tiles, monkeypatch):
    graphs = []
    project = model._project
    monkeypatch.setattr(model, "_project", lambda *states: graphs.append(states[0].grad_fn) or project(*states))
    model.chat(tokenizer, tiles, "Hi", SHORT)
    assert graphs == [None]


def test_stops_at_every_end_token(golden_model, tokenizer):
    model = golden_model("c01_v15_26b", fresh=True)
    model.generation_config.eos_token_id = 2
    # A model that says </s> whatever it sees:
    torch.nn.init.zeros_(model.language_model.output.weight)
    model.language_model.output.bias = torch.nn.Parameter(torch.eye(92553, 1)[:, 0].roll(2))
    assert model.chat(tokenizer, None, "Hello") == ""


def test_tokens_per_tile_come_from_the_tiles(model, tokenizer):
    """A kit may cut tiles of another size than the checkpoint's: the places follow the tensor."""
    assert isinstance(model.chat(tokenizer, torch.rand(1, 3, 168, 112), "Hi", SHORT), str)


BAD_CALLS = [
    ({"num_patches_list": [1, 2]}, r"num_patches_list \[1, 2\] counts 3 tiles, but pixel_values has 5"),
    ({"num_patches_list": [3, 2]}, r"1 <image> for 2 image.*Write <image> once for each image"),
    ({"question": "<image><image>"}, "2 <image> for 1 image"),
    ({"history": [("a", "b")]}, "0 <image> for 1 image"),
    ({"history": ["ab"]}, r"history\[0\] is 'ab'; expected a pair of texts \(question, answer\)"),
    ({"history": [("a", "b"), ("c",)]}, r"history\[1\] is .*expected a pair of texts"),
    ({"history": [("a", None)]}, r"history\[0\] is \('a', None\)"),
    ({"pixel_values": torch.full((1, 3, 112, 112), float("nan"))}, "holds NaN or infinite values; check the image"),
    ({"pixel_values": torch.zeros(0, 3, 112, 112)}, r"pixel_values is \(0, 3, 112, 112\).*Pass None to ask without"),
    ({"pixel_values": torch.zeros(3, 112, 112)}, r"expected a tensor \(tiles, 3, height, width\)"),
    ({"pixel_values": [1, 2]}, "pixel_values is list; expected a tensor"),
    ({"pixel_values": torch.zeros(1, 3, 100, 100)}, "100"),
    ({"pixel_values": torch.zeros(1, 3, 126, 126)}, "126"),
    ({"pixel_values": None, "num_patches_list": [3]}, "pixel_values is None; give the tiles"),
    ({"num_patches_list": [0, 5]}, r"num_patches_list \[0, 5\] counts 5 tiles"),
    ({"num_patches_list": 5}, "num_patches_list is 5; expected a list"),
    ({"history": [{"role": "user", "content": "hi"}]}, r"history\[0\] is \{'role'.*expected a pair of texts"),
    ({"history": [1, 2]}, r"history\[0\] is 1; expected a pair"),
    ({"history": 5}, "history is 5; expected a list of pairs"),
    ({"question": None}, "question is None; expected text"),
    ({"system": 5}, "system is 5; expected text"),
    ({"num_patches_list": [5.0]}, r"num_patches_list holds \[5.0\]; expected whole numbers"),
    ({"generation_config": 64}, 'generation_config is 64; expected a dict such as {"max_new_tokens": 64}'),
    (
        {"IMG_START_TOKEN": "<x>"},
        r"every published checkpoint was trained with \('<img>', '</img>', '<IMG_CONTEXT>'\)",
    ),
    ({"IMG_CONTEXT_TOKEN": "<x>"}, "Leave them out"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CALLS)
def test_bad_chat_calls(model, tokenizer, tiles, changes, message):
    call = {"pixel_values": tiles, "question": "Hi", "generation_config": SHORT, **changes}
    with pytest.raises(ValueError, match=message):
        model.chat(tokenizer, **call)


def test_integer_tiles(model, tokenizer):
    with pytest.raises(TypeError, match="dtype torch.uint8; expected normalised floating point tiles"):
        model.chat(tokenizer, torch.zeros(1, 3, 112, 112, dtype=torch.uint8), "Hi", SHORT)


@pytest.mark.parametrize(
    ("questions", "changes", "message"),
    [
        ([], {}, "expected a list with at least one question"),
        ("Hi", {}, "expected a list with at least one question"),
        (None, {}, "questions is None; expected a list"),
        (["a"], {"num_patches_list": 5}, "num_patches_list is 5; expected a list"),
        (["a", "b"], {"num_patches_list": [5.0, 0]}, r"num_patches_list holds \[5.0\]; expected whole numbers"),
        (["a", "b"], {}, "2 questions and 5 tiles, but no num_patches_list"),
        (["a", "b"], {"num_patches_list": [5]}, "1 entries for 2 questions"),
        (["a", "b"], {"num_patches_list": [3, 1]}, "counts 4 tiles, but pixel_values has 5"),
        (["a", "b"], {"num_patches_list": [3, 2], "history": [None]}, "1 histories for 2 questions"),
    ],
)
def test_bad_batch_calls(model, tokenizer, tiles, questions, changes, message):
    with pytest.raises(ValueError, match=message):
        model.batch_chat(tokenizer, tiles, questions, SHORT, **changes)


@pytest.mark.parametrize("wrong", [None, SimpleNamespace(tokenizer="of a processor")])
def test_a_tokenizer_that_is_none(model, wrong):
    with pytest.raises(
        TypeError, match="tokenizer is of type .*; expected the checkpoint's tokenizer, which a processor"
    ):
        model.chat(wrong, None, "Hi", SHORT)


def test_unknown_template(golden_model, tokenizer):
    model = golden_model("c01_v15_26b", fresh=True)
    model.config.template = "vicuna"
    with pytest.raises(ValueError, match="template is 'vicuna'; known are"):
        model.chat(tokenizer, None, "Hi", SHORT)
