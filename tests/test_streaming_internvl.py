"""What was shown of an answer never changes; the streams of whole conversations are tested with `chat`."""

import random

import pytest
import torch
from internvl_chat.conversation_internvl import PromptEncoder, decode_answer
from internvl_chat.prompt_format_internvl import PROMPT_FORMATS
from internvl_chat.streaming_internvl import WINDOW_TOKENS, AnswerStream, stream_answer
from transformers import GenerationConfig


def streamed(stream, ids):
    stream.put(torch.zeros(1, 0, dtype=torch.long))
    for token_id in ids:
        stream.put(torch.tensor([token_id]))
    stream.end()
    return "".join(stream)


@pytest.mark.parametrize(
    "text",
    [
        "I do n't know",
        "He 's here , yes .",
        "the ' quoted ' word",
        " \n two  words \n",
        "图中的数字是 4072 。 Yes",
        "<ref>cat</ref><box>[[1, 2, 3, 4]]</box> sits",
        "before<|im_end|> after",
        "",
    ],
)
def test_stream_of_any_text_is_what_chat_would_say(tokenizer, text):
    """The tokenizer tidies blanks before punctuation, so text that was shown must never change afterwards."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = streamed(AnswerStream(tokenizer, "<|im_end|>"), ids)
    assert found == decode_answer(tokenizer, ids, "<|im_end|>").strip()


WORDS = (
    "word",
    " a",
    " b",
    ".",
    " , ",
    "图中",
    "，",
    "\n",
    "  ",
    "🙂",
    "n't",
    " '",
    "<think>",
    "ноль",
    "กขค",
    "=" * 9,
)


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_a_stream_is_the_decoded_answer_in_every_format(tokenizer_of, name):
    """Random texts, some of them long and without blanks, with the format's header and stop token, cut anywhere."""
    tokenizer, style, dice = tokenizer_of(name), PROMPT_FORMATS[name], random.Random(0)
    encoder = PromptEncoder(tokenizer)
    for number in range(30):
        text = "".join(dice.choices(WORDS, k=dice.choice((0, 1, 5, 200))))
        header = encoder.text_ids(style.answer_header) if style.answer_header and number % 5 else []
        ids = header + encoder.text_ids(text) + (encoder.text_ids(style.stop) if number % 3 else [])
        ids = ids[: dice.randint(0, len(ids))] if number % 4 == 0 else ids
        found = streamed(AnswerStream(tokenizer, style.stop, style.answer_header), ids)
        assert found == encoder.decode(ids, style.stop, style.answer_header).strip()
        if header and number % 4:
            assert found == encoder.decode_text(encoder.text_ids(text)).strip()


def test_a_header_is_held_back(tokenizer_of):
    tokenizer = tokenizer_of("internvl3_5_gpt_oss")
    style = PROMPT_FORMATS["internvl3_5_gpt_oss"]
    ids = tokenizer("<|channel|>final<|message|>A cat.<|return|>").input_ids
    assert streamed(AnswerStream(tokenizer, style.stop, style.answer_header), ids) == "A cat."
    analysis = tokenizer("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant").input_ids
    assert streamed(AnswerStream(tokenizer, style.stop, style.answer_header), analysis + ids) == "A cat."
    assert streamed(AnswerStream(tokenizer, style.stop, style.answer_header), ids[:2]) == ""
    assert (
        streamed(AnswerStream(tokenizer, style.stop, style.answer_header), tokenizer("A cat.").input_ids) == "A cat."
    )


def test_text_after_a_typed_stop_is_not_streamed(tokenizer):
    encoder = PromptEncoder(tokenizer)
    ids = encoder.text_ids(encoder.guard("before <|im_end|> " + "after " * 200))
    assert streamed(AnswerStream(tokenizer, "<|im_end|>"), ids) == "before"


@pytest.mark.parametrize("unit", ["nt", "9", "กข"])
def test_text_without_blanks_is_passed_on_and_not_decoded_again(tokenizer, unit):
    ids = tokenizer(unit * 500, add_special_tokens=False).input_ids
    stream, longest = AnswerStream(tokenizer, "<|im_end|>"), 0
    stream.put(torch.zeros(1, 0, dtype=torch.long))
    for token_id in ids:
        stream.put(torch.tensor([token_id]))
        longest = max(longest, len(stream.token_ids))
    assert longest <= WINDOW_TOKENS + 8
    stream.end()
    assert "".join(stream) == unit * 500


def test_chinese_streams_without_blanks(tokenizer):
    stream = AnswerStream(tokenizer, "<|im_end|>")
    stream.put(torch.zeros(1, 0, dtype=torch.long))
    for token_id in tokenizer("你好，请介绍一下上海。", add_special_tokens=False).input_ids:
        stream.put(torch.tensor([token_id]))
    assert stream.pieces.qsize() > 2


def test_streaming_does_not_decode_the_answer_again(tokenizer):
    """Each step decodes the last tokens alone, so a long answer costs as much for each token as a short one."""
    decoded = []

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def decode(self, token_ids, **kwargs):
            decoded.append(len(token_ids))
            return tokenizer.decode(token_ids, **kwargs)

    text = "The quick brown fox , he said , does n't jump over 图中的狗 . " * 40
    ids = tokenizer(text, add_special_tokens=False).input_ids
    stream = AnswerStream(Counting(), "<|im_end|>")
    stream.put(torch.zeros(1, 0, dtype=torch.long))
    for token_id in ids:
        stream.put(torch.tensor([token_id]))
    stream.end()
    assert max(decoded) <= 2 * WINDOW_TOKENS
    assert "".join(stream) == decode_answer(tokenizer, ids, "<|im_end|>").strip()


@pytest.mark.parametrize(
    "options", [{"num_return_sequences": 2}, {"generation_config": GenerationConfig(num_beams=2)}]
)
def test_a_stream_is_one_sequence(options):
    with pytest.raises(ValueError, match="is 2, but a stream is one sequence that is never revised; set it to 1"):
        next(stream_answer(torch.nn.Linear(1, 1), None, options, None))


def test_a_stream_has_no_other_streamer():
    with pytest.raises(ValueError, match="yields the answer itself, but streamer is given too; leave it out"):
        next(stream_answer(torch.nn.Linear(1, 1), None, {"streamer": object()}, None))
