"""Rewards: scores of steps by their formulas, the official calls, and the best of N."""

import json
import shutil

import pytest
import torch
from internvl_chat import reward_internvl
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel, InternVLRewardModel
from internvl_chat.reward_internvl import HARD_SCORES, PROCESS_SYSTEM_MESSAGE, split_steps
from internvl_chat.tokenization_internlm2 import InternLM2Tokenizer
from tiny_models import TINY_LLM, TINY_VISION
from transformers import AutoModel


QUESTION, RESPONSE = "What number is written?", "It is red.\n\nIt has 4 digits.\n\nSo 4072."
OPTIONS = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return InternLM2Tokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return InternVLRewardModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tiles(model):
    side = model.config.tile_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("max_steps", "steps"),
    [
        (None, ["a", "b", "c", "d", "e"]),
        (5, ["a", "b", "c", "d", "e"]),
        (3, ["a\n\nb", "c\n\nd", "e"]),
        (2, ["a\n\nb\n\nc", "d\n\ne"]),
        (1, ["a\n\nb\n\nc\n\nd\n\ne"]),
    ],
)
def test_steps_are_split_at_blank_lines(max_steps, steps):
    assert split_steps("a\n\nb\n\nc\n\nd\n\ne", max_steps) == steps


def soft_score(model, tokenizer, tiles, history, step, system=None):
    """The share of "+" by its formula: the softmax over both signs of the logits after the prompt."""
    choices = model.score_choices(tokenizer, tiles, step, ["+", "-"], history=history, system=system, with_end=False)
    return torch.softmax(torch.tensor([choice.logprob for choice in choices], dtype=torch.float64), 0)[0].item()


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("system", [None, PROCESS_SYSTEM_MESSAGE])
def test_soft_scores_are_those_of_the_formula(model, tokenizer, tiles, has_image, system):
    tiles = tiles if has_image else None
    scores = model.score_steps(tokenizer, tiles, QUESTION, RESPONSE, system=system)
    first, *others = RESPONSE.split("\n\n")
    asked = f"<image>\n{QUESTION}" if has_image else QUESTION
    texts = [f"### Question:\n{asked}\n\n### Solution Process:\n{first}", *others]
    for index, (score, text) in enumerate(zip(scores, texts, strict=True)):
        history = [(one, "+") for one in texts[:index]]
        assert score.score == pytest.approx(soft_score(model, tokenizer, tiles, history, text, system), abs=2e-5)
    assert [score.step for score in scores] == [first, *others]
    assert len({round(score.score, 6) for score in scores}) == 3, "they differ"


def test_an_answer_as_one_step(model, tokenizer, tiles):
    (score,) = model.score_steps(tokenizer, tiles, QUESTION, RESPONSE, version="orm_soft")
    text = f"### Question:\n<image>\n{QUESTION}\n\n### Solution Process:\n{RESPONSE}"
    assert score.score == pytest.approx(soft_score(model, tokenizer, tiles, [], text), abs=2e-5)


def test_beyond_the_limit_each_length_has_its_own_angles(tokenizer):
    """Dynamic RoPE stretches with the length of the whole; a step's score must not depend on the steps after it."""
    folder_config = {"type": "dynamic", "factor": 2.0}
    model = tiny_reward(rope_scaling=folder_config, max_position_embeddings=64, vocab_size=len(tokenizer))
    whole = model.score_steps(tokenizer, None, QUESTION, RESPONSE)
    alone = model.score_steps(tokenizer, None, QUESTION, RESPONSE.split("\n\n")[0])
    assert whole[0].score == pytest.approx(alone[0].score, abs=1e-6)


def tiny_reward(**llm):
    torch.manual_seed(0)
    config = InternVLChatConfig(vision_config=TINY_VISION, llm_config={"model_type": "internlm2", **TINY_LLM, **llm})
    return InternVLRewardModel(config).eval()


def test_overall_scores(model, tokenizer, tiles, monkeypatch):
    soft = [step.score for step in model.score_steps(tokenizer, tiles, QUESTION, RESPONSE)]
    assert model.score_response(tokenizer, tiles, QUESTION, RESPONSE) == pytest.approx(sum(soft) / 3)
    said = iter(["+", "Slightly Good", "no judgement"])
    asked = []

    def chat(tokenizer, tiles, question, options, history=None, return_history=False, system=None):
        asked.append((question, history, options))
        answer = next(said)
        return answer, [*(history or []), (question, answer)]

    monkeypatch.setattr(model, "chat", chat)
    scores = model.score_steps(tokenizer, tiles, QUESTION, RESPONSE, version="hard")
    assert [step.score for step in scores] == [0, 1, -100]
    assert asked[0][0] == "### Question:\n<image>\nWhat number is written?\n\n### Solution Process:\nIt is red."
    assert asked[2][1] == [(asked[0][0], "+"), ("It has 4 digits.", "Slightly Good")]
    assert asked[0][2] == {"max_new_tokens": 10, "do_sample": False}
    said = iter(["+", "-", "+"])
    scores = model.score_steps(tokenizer, tiles, QUESTION, RESPONSE, version="hard", early_stop=True)
    assert [step.score for step in scores] == [0, -100]
    said = iter(["Good", "Good", "Bad"])
    assert model.score_response(tokenizer, tiles, QUESTION, RESPONSE, version="hard") == 2
    assert HARD_SCORES["Slightly Bad"] == -1


def test_the_official_call_sorts(model, tokenizer, tiles):
    answers = ["4072", "red", "a circle\n\na square"]
    scored = model.select_best_response(
        tokenizer, QUESTION, answers, tiles, version="soft_v2", early_stop=True, return_scores=True
    )
    assert sorted(answer for answer, _ in scored) == sorted(answers)
    assert [score for _, score in scored] == sorted((score for _, score in scored), reverse=True)
    for answer, score in scored:
        assert score == model.score_response(tokenizer, tiles, QUESTION, answer)
    names = model.select_best_response(tokenizer, QUESTION, answers, tiles, version="soft")
    assert names == [answer for answer, _ in scored]


def test_best_of_n(model, tokenizer, tiles, tiny_folder):
    policy = InternVLChatModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    best = model.select_best(policy, tokenizer, tiles, QUESTION, 6, {"do_sample": True, "temperature": 3.0, **OPTIONS})
    assert 1 < len(best.answers) <= 6
    assert len(set(best.answers)) == len(best.answers)
    assert best.scores == tuple(sorted(best.scores, reverse=True))
    assert best.answer == best.answers[0]
    assert best.scores[0] == pytest.approx(model.score_response(tokenizer, tiles, QUESTION, best.answer), abs=1e-5)
    greedy = policy.chat(tokenizer, tiles, QUESTION, {"do_sample": False, **OPTIONS})
    assert model.select_best(policy, tokenizer, tiles, QUESTION, 1, {"num_beams": 1, **OPTIONS}).answer == greedy


def test_what_is_refused(model, tokenizer, tiles):
    with pytest.raises(ValueError, match="version is 'best'; known are 'soft', 'soft_v2', 'hard', 'orm_soft'"):
        model.score_steps(tokenizer, tiles, QUESTION, RESPONSE, version="best")
    with pytest.raises(ValueError, match="early_stop is for version='hard'; 'soft' scores all steps at once"):
        model.score_steps(tokenizer, tiles, QUESTION, RESPONSE, early_stop=True)
    with pytest.raises(ValueError, match="max_steps is 0; expected at least 1, or None"):
        model.score_steps(tokenizer, tiles, QUESTION, RESPONSE, max_steps=0)
    with pytest.raises(ValueError, match="num_answers is 0; expected at least 1"):
        model.select_best(model, tokenizer, tiles, QUESTION, 0)
    with pytest.raises(ValueError, match="are encoded by one model, but two read them; give the tiles"):
        model.select_best(model, tokenizer, model.encode_images(tiles), QUESTION)


def test_a_tokenizer_that_spells_the_signs(model, tokenizer, monkeypatch):
    monkeypatch.setattr(reward_internvl, "SIGNS", ("+", "minus 1"))
    with pytest.raises(ValueError, match=r"\+ and minus 1 are not one token each of the tokenizer"):
        model.score_steps(tokenizer, None, QUESTION, RESPONSE)


def test_the_published_folder_loads_as_a_reward_model(tiny_folder, tmp_path):
    """Its config.json names the class for AutoModel, and so does that of a saved one."""
    folder = shutil.copytree(tiny_folder, tmp_path / "VisualPRM")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["architectures"] = ["InternVLRewardModel"]
    config["auto_map"] = {
        "AutoConfig": config["auto_map"]["AutoConfig"],
        "AutoModel": "modeling_internvl_chat.InternVLRewardModel",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__name__ == "InternVLRewardModel"
    loaded.save_pretrained(tmp_path / "saved")
    assert (
        type(AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)).__name__ == "InternVLRewardModel"
    )
