"""Every field that the clients read is in a saved folder; README.md here lists who reads which, and for what."""

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor


CONFIG = (
    "architectures",
    "auto_map",
    "downsample_ratio",
    "dynamic_image_size",
    "force_image_size",
    "image_token_id",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "model_type",
    "ps_version",
    "select_layer",
    "template",
    "use_thumbnail",
)
VISION = (
    "hidden_act",
    "hidden_size",
    "image_size",
    "initializer_factor",
    "intermediate_size",
    "layer_norm_eps",
    "norm_type",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    "qk_normalization",
    "qkv_bias",
)
LANGUAGE = (
    "architectures",
    "bias",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
)
TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def saved(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients") / "saved"
    for auto_class in (AutoModelForImageTextToText, AutoProcessor):
        auto_class.from_pretrained(tiny_folder, trust_remote_code=True).save_pretrained(folder)
    return folder


@pytest.fixture(params=["published", "saved"])
def folder(request, tiny_folder):
    return tiny_folder if request.param == "published" else request.getfixturevalue("saved")


def read(folder, name):
    return json.loads((folder / name).read_text("utf-8"))


def test_config(folder):
    config = read(folder, "config.json")
    assert not set(CONFIG) - set(config)
    assert not set(VISION) - set(config["vision_config"])
    assert not set(LANGUAGE) - set(config["llm_config"])
    # The values by which engines choose their code.
    assert config["architectures"] == ["InternVLChatModel"]
    assert config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]
    assert config["model_type"] == "internvl_chat"
    assert (config["ps_version"], config["select_layer"]) == ("v2", -1)


def test_tokenizer(folder):
    config = read(folder, "tokenizer_config.json")
    contents = {token["content"] for token in config["added_tokens_decoder"].values()}
    assert not set(TOKENS) - contents
    assert (folder / "tokenizer.model").is_file()
    assert (folder / "chat_template.jinja").is_file() or "chat_template" in config


def test_stop_tokens(folder):
    """generation_config.json names both tokens at which an answer ends."""
    tokens = read(folder, "tokenizer_config.json")["added_tokens_decoder"]
    ends = {int(number) for number, token in tokens.items() if token["content"] in ("<|im_end|>", "</s>")}
    assert set(read(folder, "generation_config.json")["eos_token_id"]) == ends


def test_preprocessor(tiny_folder):
    """`CLIPImageProcessor` (LMDeploy, VLMEvalKit for V1.2) finds its own fields in the published file."""
    names = {"crop_size", "do_center_crop", "do_normalize", "do_resize", "image_mean", "image_std", "resample", "size"}
    assert not names - set(read(tiny_folder, "preprocessor_config.json"))
