"""InternVisionConfig: the published sizes, and what it refuses."""

import json

import pytest
from internvl_chat.configuration_intern_vit import InternVisionConfig


def test_defaults_are_the_published_6b():
    config = InternVisionConfig()
    assert config.model_type == "intern_vit_6b"
    assert config.num_channels == 3
    assert config.patch_size == 14
    assert config.image_size == 448
    assert config.qkv_bias is False
    assert config.hidden_size == 3200
    assert config.num_attention_heads == 25
    assert config.intermediate_size == 12800
    assert config.qk_normalization is True
    assert config.num_hidden_layers == 45
    assert config.hidden_act == "gelu"
    assert config.norm_type == "rms_norm"
    assert config.layer_norm_eps == 1e-6
    assert config.dropout == config.drop_path_rate == config.attention_dropout == 0.0


def test_sizes_of_the_300m(goldens):
    published = json.loads((goldens / "official_configs" / "mini-internvl-chat-2b-v1-5.json").read_text("utf-8"))
    config = InternVisionConfig(**published["vision_config"])
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (1024, 16, 24)
    assert (config.norm_type, config.qkv_bias, config.qk_normalization) == ("layer_norm", True, False)


def test_unknown_keys_are_kept(tmp_path):
    InternVisionConfig(use_flash_attn=True, num_hidden_layers=2).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written["use_flash_attn"] is True
    assert written["num_hidden_layers"] == 2
    loaded = InternVisionConfig.from_pretrained(tmp_path)
    assert loaded.use_flash_attn is True
    assert loaded.num_hidden_layers == 2


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"hidden_size \(100\) must be a multiple of num_attention_heads \(3\)"):
        InternVisionConfig(hidden_size=100, num_attention_heads=3)


def test_norms_that_do_not_exist():
    with pytest.raises(ValueError, match="norm_type is 'batch_norm'; InternViT knows 'rms_norm', 'layer_norm'"):
        InternVisionConfig(norm_type="batch_norm")
