"""What was shown of an answer never changes; the streams of whole conversations are tested with `chat`."""

import pytest
import torch
from internvl_chat.conversation_internvl import decode_answer
from internvl_chat.streaming_internvl import AnswerStream, in_one_place
from transformers import GenerationConfig


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
    stream, ids = AnswerStream(tokenizer, "<|im_end|>"), tokenizer(text, add_special_tokens=False).input_ids
    stream.put(torch.zeros(1, 0, dtype=torch.long))
    for token_id in ids:
        stream.put(torch.tensor([token_id]))
    stream.end()
    assert "".join(stream) == decode_answer(tokenizer, ids, "<|im_end|>").strip()


def test_chinese_streams_without_blanks(tokenizer):
    stream = AnswerStream(tokenizer, "<|im_end|>")
    stream.put(torch.zeros(1, 0, dtype=torch.long))
    for token_id in tokenizer("你好，请介绍一下上海。", add_special_tokens=False).input_ids:
        stream.put(torch.tensor([token_id]))
    assert stream.pieces.qsize() > 2


def test_options_beside_a_generation_config_go_into_it():
    given, stop = GenerationConfig(num_beams=2, max_new_tokens=3), object()
    options = in_one_place(
        {"generation_config": given, "max_new_tokens": 5, "eos_token_id": [2], "stopping_criteria": stop}
    )
    config = options.pop("generation_config")
    assert options == {"stopping_criteria": stop}
    assert (config.num_beams, config.max_new_tokens, config.eos_token_id) == (2, 5, [2])
    assert (given.max_new_tokens, given.eos_token_id) == (3, None)
    assert in_one_place({"max_new_tokens": 5}) == {"max_new_tokens": 5}
