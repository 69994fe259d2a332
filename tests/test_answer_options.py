"""Options are merged once, with one precedence; penalties and the like see the answer alone."""

import pytest
import torch
from internvl_chat.answer_internvl import answer_options, read_options, seeing_answer_alone
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor, StoppingCriteria


DEFAULTS = GenerationConfig(eos_token_id=2, pad_token_id=2)


class Tokenizer:
    eos_token_id, pad_token_id, unk_token_id = 2, None, 0

    def convert_tokens_to_ids(self, token):
        return {"<|im_end|>": 7}.get(token, 0)


def merged(given, **arguments):
    return answer_options(given, DEFAULTS, Tokenizer(), "<|im_end|>", **arguments)


def test_precedence():
    """An argument, an entry of the dict, a GenerationConfig in it, the model's own settings."""
    config = GenerationConfig(max_new_tokens=3, num_beams=2, top_k=5)
    given = {"generation_config": config, "max_new_tokens": 4, "num_beams": 3}
    found = merged(given, num_beams=1)["generation_config"]
    assert (found.max_new_tokens, found.num_beams, found.top_k) == (4, 1, 5)
    assert (config.max_new_tokens, config.num_beams, config.eos_token_id) == (3, 2, None)
    assert given == {"generation_config": config, "max_new_tokens": 4, "num_beams": 3}


def test_what_is_no_setting_stays_an_argument():
    streamer, criteria = object(), [object()]
    found = merged({"streamer": object(), "stopping_criteria": criteria, "logits_processor": None}, streamer=streamer)
    assert found.keys() == {"generation_config", "streamer", "stopping_criteria"}
    assert found["streamer"] is streamer
    assert found["stopping_criteria"] is criteria


def test_an_answer_ends_at_every_end_token_and_is_long_enough():
    config = merged(None)["generation_config"]
    assert (config.eos_token_id, config.pad_token_id, config.max_new_tokens) == ([2, 7], 2, 1024)
    assert merged({"eos_token_id": [5]})["generation_config"].eos_token_id == [5]
    assert merged(GenerationConfig(eos_token_id=5))["generation_config"].eos_token_id == 5
    # An open length is not Transformers' 20; a given one of either kind stays.
    assert merged(GenerationConfig(do_sample=False))["generation_config"].max_new_tokens == 1024
    assert merged({"max_length": 50})["generation_config"].max_new_tokens is None


@pytest.mark.parametrize("given", [3, "greedy", [("max_new_tokens", 3)]])
def test_other_things_are_no_options(given):
    with pytest.raises(ValueError, match="expected a dict such as .*or a GenerationConfig"):
        read_options(given)


def test_penalties_see_the_answer_alone():
    options = merged({"repetition_penalty": 2.0, "no_repeat_ngram_size": 2, "bad_words_ids": [[3]]})
    seen = seeing_answer_alone(options, Tokenizer(), 4)
    config = seen["generation_config"]
    assert (config.repetition_penalty, config.no_repeat_ngram_size, config.bad_words_ids) == (1.0, 0, None)
    assert options["generation_config"].repetition_penalty == 2.0, "the merged options can be used again"
    input_ids = torch.tensor([[5, 6, 5, 6, 1]])  # a prompt of four tokens, and an answer of one
    scores = seen["logits_processor"](input_ids, torch.ones(1, 8))
    expected = RepetitionPenaltyLogitsProcessor(2.0)(torch.tensor([[1]]), torch.ones(1, 8))
    expected[0, 3] = -torch.inf
    assert torch.equal(scores, expected)


def test_a_callers_own_criteria_see_the_answer_alone():
    lengths = []

    class Own(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            lengths.append(input_ids.shape[1])
            return torch.zeros(len(input_ids), dtype=torch.bool)

    seen = seeing_answer_alone(merged({"stopping_criteria": [Own()]}), Tokenizer(), 4)
    seen["stopping_criteria"](torch.zeros(1, 6, dtype=torch.long), None)
    assert lengths == [2]


def test_streamers_get_an_empty_prompt():
    class Streamer:
        values = []

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.values.append("end")

    streamer = seeing_answer_alone(merged({"streamer": Streamer()}), Tokenizer(), 2)["streamer"]
    streamer.put(torch.tensor([[5, 6]]))
    streamer.put(torch.tensor([7]))
    streamer.end()
    assert Streamer.values == [[[]], [7], "end"]
