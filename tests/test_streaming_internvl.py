"""What was shown of an answer never changes; the streams of whole conversations are tested with `chat`."""

import pytest
import torch
from internvl_chat.conversation_internvl import decode_answer
from internvl_chat.streaming_internvl import WINDOW_TOKENS, AnswerStream, stream_answer
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
        next(stream_answer(torch.nn.Linear(1, 1), None, "", options, None))


def test_a_stream_has_no_other_streamer():
    with pytest.raises(ValueError, match="yields the answer itself, but streamer is given too; leave it out"):
        next(stream_answer(torch.nn.Linear(1, 1), None, "", {"streamer": object()}, None))
