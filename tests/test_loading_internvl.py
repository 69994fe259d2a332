"""Strict loading: every way in which weights do not fit the model is an error that says why."""

import re

import pytest
import torch
from internvl_chat.loading_internvl import add_stop, check_loaded
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from safetensors.torch import load_file, save_file
from tiny_models import prompt, tiles, tiny_model
from transformers import GenerationConfig


@pytest.fixture
def change(tmp_path):
    """Save a tiny checkpoint and change its weights."""
    tiny_model("qwen2").save_pretrained(tmp_path)

    def to(function):
        path = tmp_path / "model.safetensors"
        weights = load_file(path)
        save_file(function(weights), path, metadata={"format": "pt"})
        return tmp_path

    return to


def without(prefix):
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(prefix)}


def with_extra(name):
    return lambda weights: {**weights, name: torch.zeros(2, 2)}


def as_lora(weights):
    return {re.sub(r"(q_proj)\.weight", r"\1.base_layer.weight", name): value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (without("vision_model.encoder.layers.0."), r"13 missing \(vision_model.*another architecture's"),
        (without("mlp1.1."), r"2 missing \(mlp1.1.bias, mlp1.1.weight\)"),
        (without("language_model.lm_head"), "1 missing .*the language model is not the one that llm_config describes"),
        (without("language_model.model.layers.1.mlp"), "3 missing"),
        (as_lora, r"2 missing .* and 2 unexpected .*LoRA adapters that are not merged"),
        (with_extra("mlp2.1.weight"), r"1 unexpected \(mlp2.1.weight\).*Flash.*pass strict=False"),
        (with_extra("gating.gate.weight"), "Flash"),
        (with_extra("language_model.model.layers.0.mlp_ve.up.weight"), "Mono-InternVL"),
        (with_extra("anything.weight"), "another architecture's"),
    ],
)
def test_weights_that_do_not_fit(change, function, message):
    folder = change(function)
    with pytest.raises(ValueError, match=message):
        InternVLChatModel.from_pretrained(folder)
    _, info = InternVLChatModel.from_pretrained(folder, strict=False, output_loading_info=True)
    assert info["missing_keys"] or info["unexpected_keys"]


def test_experts_that_were_not_fused():
    info = {
        "missing_keys": ["language_model.model.layers.0.mlp.experts.gate_up_proj"],
        "unexpected_keys": ["language_model.model.layers.0.mlp.experts.0.gate_proj.weight"],
    }
    with pytest.raises(ValueError, match="The weights of x do not fit.*does not fuse the experts"):
        check_loaded("x", info)


def test_computed_buffers_are_no_weights(change):
    folder = change(with_extra("language_model.model.layers.0.self_attn.rotary_emb.inv_freq"))
    model, info = InternVLChatModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, InternVLChatModel)
    assert not info["missing_keys"]


def test_tied_embeddings_need_no_head(tmp_path):
    model = tiny_model("qwen2")
    config = model.config
    config.llm_config.tie_word_embeddings = config.tie_word_embeddings = True
    torch.manual_seed(0)
    InternVLChatModel(config).save_pretrained(tmp_path)
    loaded = InternVLChatModel.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_a_broken_shard_is_named(change):
    folder = change(lambda weights: weights)
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged \(.*\); expected whole weights: fetch or"):
        InternVLChatModel.from_pretrained(folder)
    with pytest.raises((OSError, ValueError), match="gone"):  # some releases take it for a bad name of a repository
        InternVLChatModel.from_pretrained(folder / "gone")


@pytest.mark.parametrize(
    ("found", "stop", "expected"),
    [(None, 5, [5]), (2, 5, [2, 5]), ([2, 5], 5, [2, 5]), ([2], None, [2]), (2, None, 2), (5, 5, 5)],
)
def test_generation_stops_where_answers_end(found, stop, expected):
    config = GenerationConfig(eos_token_id=found)
    add_stop(config, stop)
    assert config.eos_token_id == expected


def test_a_wrong_guess_of_the_image_token_is_an_error():
    """A padded vocabulary whose tokenizer is not beside config.json."""
    model = tiny_model("qwen2")
    model.config.image_token_id = 95
    with pytest.raises(
        ValueError, match=r"has 0 image tokens \(id 95\), but the images have 4 .*config.image_token_id"
    ):
        model.generate(prompt(1), pixel_values=tiles(1), max_new_tokens=1)
    with pytest.raises(
        ValueError, match=r"has 0 image tokens \(id 95\), but the images have 4 .*config.image_token_id"
    ):
        model(input_ids=prompt(1), pixel_values=tiles(1))
