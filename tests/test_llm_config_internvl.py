"""Published language configs of the whole family: read unchanged, saved as engines read them."""

import copy
import json

import pytest
from family import published_layouts
from internvl_chat.configuration_internvl_chat import InternVLChatConfig


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
PHI3 = {
    "model_type": "phi3",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "vocab_size": 100,
    "pad_token_id": 2,
    "original_max_position_embeddings": 4096,
    "max_position_embeddings": 131072,
}
# Keys that decide nothing here, or that Transformers itself drops.
NOT_KEPT = {"torch_dtype", "auto_map", "attn_implementation"}


def saved(llm_config, folder):
    config = InternVLChatConfig(llm_config=llm_config)
    config.save_pretrained(folder)
    assert InternVLChatConfig.from_pretrained(folder).to_dict() == config.to_dict()
    return json.loads((folder / "config.json").read_text("utf-8"))["llm_config"]


@pytest.mark.parametrize("name", ["su", "longrope"])
def test_the_limit_of_phi3_stays_outside_rope_scaling(tmp_path, name):
    given = {**PHI3, "rope_scaling": {"type": name, **FACTORS}}
    before = copy.deepcopy(given)
    written = saved(given, tmp_path)
    assert given == before
    assert written["rope_scaling"] == {"type": "longrope", **FACTORS}
    assert written["original_max_position_embeddings"] == 4096
    assert written["max_position_embeddings"] == 131072


def test_moe_configs_keep_the_names_that_engines_read(tmp_path):
    written = saved({"model_type": "qwen3_moe", "num_experts": 4, "vocab_size": 100}, tmp_path)
    assert written["num_experts"] == 4


def test_internlm3_is_read_by_every_release(tmp_path):
    written = saved({"model_type": "internlm3", "qkv_bias": False, "bias": False, "vocab_size": 100}, tmp_path)
    assert {name: written[name] for name in ("model_type", "qkv_bias", "bias")} == {
        "model_type": "internlm3",
        "qkv_bias": False,
        "bias": False,
    }


@pytest.mark.usefixtures("goldens")
def test_published_layouts(tmp_path):
    """Every key of the language model survives a round trip, but for `su`, which has been renamed."""
    layouts = published_layouts()
    assert len(layouts) == 35
    for name, (published, _) in layouts.items():
        config = InternVLChatConfig(**copy.deepcopy(published))
        config.save_pretrained(tmp_path)
        assert InternVLChatConfig.from_pretrained(tmp_path).to_dict() == config.to_dict(), name
        written = json.loads((tmp_path / "config.json").read_text("utf-8"))
        for part in ("llm_config", "vision_config"):
            expected = {key: value for key, value in published[part].items() if key not in NOT_KEPT}
            if name.endswith("(su)") and part == "llm_config":
                expected["rope_scaling"] = {**expected["rope_scaling"], "type": "longrope"}
            assert {key: written[part].get(key, "is gone") for key in expected} == expected, name
