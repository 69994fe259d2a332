"""Typed text never becomes a structural token, however it is cut into turns, items and names."""

import pytest
from internvl_chat.conversation_internvl import PromptEncoder, ids_of, turns_of_history
from internvl_chat.prompt_format_internvl import PROMPT_FORMATS, prompt_format
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from strange import ROOT, seeded, text


STYLES = ("internlm2-chat", "Hermes-2", "internvl_zh", "internvl2_5", "phi3-chat")
STYLES = tuple(name for name in STYLES if name in PROMPT_FORMATS)


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(InternLM2Tokenizer.from_pretrained(ROOT / "tiny"))


@pytest.fixture(scope="module")
def control_ids(encoder):
    return {index for token, index in encoder.added_tokens.items() if token in encoder.control_tokens}


def run(encoder, control_ids, count, seed):
    for number in range(count):
        rng = seeded("prompt", seed, number)
        style = prompt_format(STYLES[number % len(STYLES)])
        typed = [text(rng, 8) for _ in range(rng.choice([1, 1, 3]))]
        past = [(typed[0], typed[1])] if len(typed) == 3 else []
        plain = [("a", "b")] if past else []
        system = text(rng) if rng.random() < 0.2 else None
        found = encoder.encode(style, turns_of_history(past, typed[-1], False), system=system)
        wanted = encoder.encode(style, turns_of_history(plain, "a", False), system=system and "a")
        # The structural tokens, in order.
        found, wanted = ([one for one in ids_of(pieces) if one in control_ids] for pieces in (found, wanted))
        assert found == wanted, (seed, number, style.name, typed, system)


def test_typed_text_stays_text(encoder, control_ids):
    run(encoder, control_ids, 300, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_hundred_thousand_prompts(encoder, control_ids, seed):
    run(encoder, control_ids, 10_000, seed)
