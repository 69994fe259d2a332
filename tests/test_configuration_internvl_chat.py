"""InternVLChatConfig: reads published files unchanged, and writes back what engines read."""

import copy
import json
from pathlib import Path

import pytest
from internvl_chat.configuration_intern_vit import InternVisionConfig
from internvl_chat.configuration_internlm2 import InternLM2Config
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from transformers import GenerationConfig, PretrainedConfig


ROOT = Path(__file__).resolve().parent.parent
OFFICIAL = (
    "internvl-chat-v1-2",
    "internvl-chat-v1-5",
    "internvl2-1b",
    "internvl2-8b",
    "mini-internvl-chat-2b-v1-5",
    "mini-internvl-chat-4b-v1-5",
)
# What vLLM, LMDeploy, SGLang and the evaluation kits read from config.json.
ENGINE_KEYS = (
    "architectures",
    "downsample_ratio",
    "dynamic_image_size",
    "force_image_size",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "model_type",
    "pad2square",
    "ps_version",
    "select_layer",
    "template",
    "use_thumbnail",
)
ENGINE_VISION_KEYS = (
    "architectures",
    "hidden_act",
    "hidden_size",
    "image_size",
    "initializer_factor",
    "intermediate_size",
    "layer_norm_eps",
    "model_type",
    "norm_type",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    "qk_normalization",
    "qkv_bias",
    "use_flash_attn",
)
ENGINE_LLM_KEYS = (
    "architectures",
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

# The published config.json of InternVL-Chat-V1-5, in part.
PUBLISHED = {
    "architectures": ["InternVLChatModel"],
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "model_type": "internvl_chat",
    "pad2square": False,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internlm2-chat",
    "torch_dtype": "bfloat16",
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "use_thumbnail": True,
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "hidden_act": "gelu",
        "hidden_size": 3200,
        "image_size": 448,
        "initializer_factor": 0.1,
        "intermediate_size": 12800,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "rms_norm",
        "num_attention_heads": 25,
        "num_channels": 3,
        "num_hidden_layers": 45,
        "patch_size": 14,
        "qk_normalization": True,
        "qkv_bias": False,
        "use_flash_attn": True,
    },
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "flash_attention_2",
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "max_position_embeddings": 32768,
        "model_type": "internlm2",
        "num_attention_heads": 48,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 3.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "vocab_size": 92553,
    },
}


def read(path):
    return json.loads(path.read_text("utf-8"))


def picked(config, keys):
    return {key: config[key] for key in keys if key in config}


def check_engine_keys(written, published):
    """Every key that engines read and that was there is still there, with its value."""
    assert picked(written, ENGINE_KEYS) == picked(published, ENGINE_KEYS)
    sub_keys = {"vision_config": ENGINE_VISION_KEYS, "llm_config": ENGINE_LLM_KEYS}
    for name, keys in sub_keys.items():
        # A published null says the same as a key that is not there.
        expected = {key: value for key, value in picked(published[name], keys).items() if value is not None}
        assert picked(written[name], expected) == expected


# Reading.


def test_defaults_are_the_published_26b():
    config = InternVLChatConfig()
    assert isinstance(config.vision_config, InternVisionConfig)
    assert isinstance(config.llm_config, InternLM2Config)
    check_engine_keys(
        {**config.to_dict(), "architectures": PUBLISHED["architectures"], "force_image_size": config.tile_size},
        {
            **PUBLISHED,
            # What a class cannot know of itself: who uses it, and a switch of the official code.
            "vision_config": {**PUBLISHED["vision_config"], "architectures": None, "use_flash_attn": None},
            "llm_config": {**PUBLISHED["llm_config"], "architectures": None},
        },
    )
    assert config.image_token_id == 92546
    assert config.tile_size == 448
    assert config.downsample_factor == 2
    assert config.system_message is None


def test_root_config_is_the_published_one(goldens):
    published, ours = read(goldens / "official_configs" / "internvl-chat-v1-5.json"), read(ROOT / "config.json")
    assert set(ours) - set(published) == {"image_token_id"}
    assert {key: ours[key] for key in published if key != "auto_map"} == {
        key: value for key, value in published.items() if key != "auto_map"
    }


def test_every_key_of_the_root_config_is_known():
    """A misspelt key would be kept in silence, so each is an argument, or one that Transformers itself writes."""
    ours = read(ROOT / "config.json")
    for config, written in (
        (InternVLChatConfig, ours),
        (InternVisionConfig, ours["vision_config"]),
        (InternLM2Config, ours["llm_config"]),
    ):
        known = {*config().to_dict(), *PretrainedConfig().to_dict(), *GenerationConfig().to_dict(), *LEGACY_KEYS}
        assert sorted(set(written) - known) == []


# Written by Transformers 4.37, or switches of the official code; nothing here reads them.
LEGACY_KEYS = {
    "_commit_hash",
    "_name_or_path",
    "add_cross_attention",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "is_decoder",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "typical_p",
    "use_bfloat16",
    "use_flash_attn",
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_configs(goldens, name, tmp_path):
    published = read(goldens / "official_configs" / f"{name}.json")
    (tmp_path / "config.json").write_text(json.dumps(published), "utf-8")
    config = InternVLChatConfig.from_pretrained(tmp_path)
    assert config.llm_config.model_type == published["llm_config"]["model_type"]
    assert config.llm_config.vocab_size == published["llm_config"]["vocab_size"]
    assert config.template == published["template"]
    assert config.ps_version == published["ps_version"]
    assert config.select_layer == published["select_layer"]
    config.save_pretrained(tmp_path / "saved")
    check_engine_keys(read(tmp_path / "saved" / "config.json"), published)
    again = InternVLChatConfig.from_pretrained(tmp_path / "saved")
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("name", "image_token_id", "template"),
    [
        ("internvl-chat-v1-5", 92546, "internlm2-chat"),
        ("mini-internvl-chat-2b-v1-5", 92546, "internlm2-chat"),
        ("mini-internvl-chat-4b-v1-5", 32013, "phi3-chat"),
    ],
)
def test_image_token_of_official_configs(goldens, name, image_token_id, template):
    config = InternVLChatConfig.from_json_file(goldens / "official_configs" / f"{name}.json")
    assert config.image_token_id == image_token_id
    assert config.template == template


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<img>": 89, "<IMG_CONTEXT>": 90}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"90": {"content": "<IMG_CONTEXT>"}}}),
        ("tokenizer.json", {"added_tokens": [{"id": 90, "content": "<IMG_CONTEXT>", "special": True}]}),
    ],
)
def test_the_tokenizers_files_say_the_image_token(tmp_path, file, content):
    llm_config = {"model_type": "qwen2", "vocab_size": 128}  # padded: the seventh from the end is 121
    (tmp_path / "config.json").write_text(json.dumps({"llm_config": llm_config}), "utf-8")
    assert InternVLChatConfig.from_pretrained(tmp_path).image_token_id == 121
    (tmp_path / file).write_text(json.dumps(content), "utf-8")
    assert InternVLChatConfig.from_pretrained(tmp_path).image_token_id == 90
    (tmp_path / "config.json").write_text(json.dumps({"llm_config": llm_config, "image_token_id": 7}), "utf-8")
    assert InternVLChatConfig.from_pretrained(tmp_path).image_token_id == 7


def test_the_tokenizers_files_say_where_answers_end(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"template": "internvl2_5"}), "utf-8")
    assert InternVLChatConfig.from_pretrained(tmp_path).stop_token_id is None
    decoder = {"90": {"content": "<IMG_CONTEXT>"}, "88": {"content": "<|im_end|>"}, "87": {"content": "<|return|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}), "utf-8")
    config = InternVLChatConfig.from_pretrained(tmp_path)
    assert (config.image_token_id, config.stop_token_id) == (90, 88)
    (tmp_path / "config.json").write_text(json.dumps({"template": "internvl3_5_gpt_oss"}), "utf-8")
    assert InternVLChatConfig.from_pretrained(tmp_path).stop_token_id == 87


def test_a_guess_is_not_saved(tmp_path):
    config = InternVLChatConfig(llm_config={"model_type": "qwen2", "vocab_size": 128})
    config.save_pretrained(tmp_path)
    assert config.image_token_id == 121
    assert InternVLChatConfig.from_pretrained(tmp_path).image_token_id == 121
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": 90}), "utf-8")
    assert InternVLChatConfig.from_pretrained(tmp_path).image_token_id == 90
    config.image_token_id = 77
    config.save_pretrained(tmp_path)
    assert InternVLChatConfig.from_pretrained(tmp_path).image_token_id == 77


@pytest.mark.parametrize("prefix", ["", "someone/code--"])
def test_classes_that_a_published_config_does_not_name(tmp_path, prefix):
    published = {
        "AutoConfig": f"{prefix}configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": f"{prefix}modeling_internvl_chat.InternVLChatModel",
    }
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": published}), "utf-8")
    found = InternVLChatConfig.from_pretrained(tmp_path).auto_map
    assert found["AutoModelForImageTextToText"] == f"{prefix}modeling_internvl_chat.InternVLChatModel"
    assert found["AutoProcessor"] == f"{prefix}processing_internvl.InternVLProcessor"
    ours = read(ROOT / "config.json")["auto_map"]
    assert {name: f"{prefix}{ours[name]}" for name in found} == found


# Writing.


def test_round_trip_keeps_what_engines_read(tmp_path):
    config = InternVLChatConfig(**PUBLISHED)
    for index in range(2):  # what was saved once is saved the same again
        folder = tmp_path / str(index)
        config.save_pretrained(folder)
        written = read(folder / "config.json")
        check_engine_keys(written, PUBLISHED)
        assert written.get("image_token_id") is None, "a guess is no fact"
        assert written["use_backbone_lora"] == written["use_llm_lora"] == 0
        config = InternVLChatConfig.from_pretrained(folder)
    assert read(tmp_path / "0" / "config.json") == read(tmp_path / "1" / "config.json")
    check_engine_keys(config.to_dict(), PUBLISHED)


def test_settings_survive_a_round_trip(tmp_path):
    changed = {
        "select_layer": -4,
        "force_image_size": 224,
        "ps_version": "v1",
        "template": "Hermes-2",
        "system_message": "Be brief.",
        "image_token_id": 7,
        "dynamic_image_size": False,
        "use_thumbnail": False,
        "min_dynamic_patch": 2,
        "max_dynamic_patch": 6,
        "pad2square": True,
        "some_later_key": {"kept": 1},
    }
    InternVLChatConfig(**{**PUBLISHED, **changed}).save_pretrained(tmp_path)
    assert picked(read(tmp_path / "config.json"), changed) == changed
    loaded = InternVLChatConfig.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in changed} == changed


def test_no_backend_is_written(tmp_path):
    config = InternVLChatConfig(**PUBLISHED)
    config._attn_implementation = "eager"
    config.save_pretrained(tmp_path)
    assert "_attn_implementation" not in (tmp_path / "config.json").read_text("utf-8")


def test_published_backend_chooses_nothing():
    config = InternVLChatConfig(**PUBLISHED)
    assert PUBLISHED["llm_config"]["attn_implementation"] == "flash_attention_2"
    assert config.llm_config._attn_implementation is None
    assert config.vision_config._attn_implementation is None
    assert not hasattr(config.llm_config, "attn_implementation")


def test_the_callers_dicts_stay_as_they_are():
    given = copy.deepcopy(PUBLISHED)
    InternVLChatConfig(**given)
    assert given == PUBLISHED


# Composing.


def test_ready_configs_are_used():
    vision, llm = InternVisionConfig(num_hidden_layers=2), InternLM2Config(vocab_size=100)
    config = InternVLChatConfig(vision_config=vision, llm_config=llm)
    assert config.vision_config is vision
    assert config.llm_config is llm
    assert config.text_config is llm
    assert config.get_text_config() is config.get_text_config(decoder=True) is llm
    assert config.image_token_id == 93


def test_rope_keys_of_other_language_models(tmp_path):
    """Transformers 5 writes them under another name, which releases before it would read as no scaling at all."""
    scaling = {"rope_type": "linear", "factor": 2.0}
    llm_config = {"model_type": "llama", "rope_theta": 5_000_000.0, "rope_scaling": scaling}
    InternVLChatConfig(llm_config=llm_config).save_pretrained(tmp_path)
    written = read(tmp_path / "config.json")["llm_config"]
    assert written["rope_theta"] == 5_000_000.0
    assert written["rope_scaling"] == scaling
    published_names = {key: value for key, value in written.items() if key != "rope_parameters"}
    loaded = InternVLChatConfig.from_pretrained(tmp_path).llm_config
    assert loaded.to_dict() == InternVLChatConfig(llm_config=published_names).llm_config.to_dict()


@pytest.mark.parametrize("model_type", ["llama", "phi3", "qwen2", "qwen3"])
def test_language_models_of_transformers(model_type):
    config = InternVLChatConfig(llm_config={"model_type": model_type, "vocab_size": 100, "hidden_size": 64})
    assert config.llm_config.model_type == model_type
    assert config.llm_config.hidden_size == 64


def test_tile_size():
    vision = {**PUBLISHED["vision_config"], "image_size": 224}
    assert InternVLChatConfig(vision_config=vision).tile_size == 224
    assert InternVLChatConfig(vision_config=vision, force_image_size=448).tile_size == 448


@pytest.mark.parametrize(("ratio", "factor"), [(0.5, 2), (1.0, 1), (1, 1), (0.25, 4), (1 / 3, 3), (0.3333333, 3)])
def test_downsample_factor(ratio, factor):
    assert InternVLChatConfig(downsample_ratio=ratio).downsample_factor == factor


def test_tied_embeddings_are_the_language_models():
    tied = InternVLChatConfig(llm_config={"model_type": "qwen2", "tie_word_embeddings": True})
    assert tied.tie_word_embeddings is True
    assert InternVLChatConfig().tie_word_embeddings is False


# What is refused.


@pytest.mark.parametrize("ratio", [0.3, 0.0, 2.0, -0.5])
def test_ratios_that_are_no_square(ratio):
    with pytest.raises(ValueError, match=f"downsample_ratio is {ratio}; expected 1/n for a whole n, such as 0.5"):
        InternVLChatConfig(downsample_ratio=ratio)


def test_pixel_shuffle_versions_that_do_not_exist():
    with pytest.raises(ValueError, match="ps_version is 'v3'; known are 'v1', 'v2'"):
        InternVLChatConfig(ps_version="v3")


def test_a_language_model_without_a_type():
    message = r"llm_config has no model_type \(architectures: \['LlamaForCausalLM'\]\). Add the language model's type"
    with pytest.raises(ValueError, match=message):
        InternVLChatConfig(llm_config={"architectures": ["LlamaForCausalLM"]})


def test_a_language_model_that_transformers_does_not_know():
    with pytest.raises(ValueError, match="no_such_model"):
        InternVLChatConfig(llm_config={"model_type": "no_such_model"})


def test_text_config_is_another_name_of_llm_config():
    config = InternVLChatConfig(text_config={"model_type": "internlm2", "vocab_size": 100})
    assert config.llm_config.vocab_size == 100
