"""InternLM2Config: the published sizes, both spellings of the RoPE keys, and what it refuses."""

import copy
import json

import pytest
from internvl_chat.configuration_internlm2 import InternLM2Config


def test_defaults_are_the_published_20b():
    config = InternLM2Config()
    assert config.model_type == "internlm2"
    assert config.vocab_size == 92553
    assert config.hidden_size == 6144
    assert config.intermediate_size == 16384
    assert config.num_hidden_layers == 48
    assert config.num_attention_heads == 48
    assert config.num_key_value_heads == 8
    assert config.head_dim == 128
    assert config.hidden_act == "silu"
    assert config.max_position_embeddings == 32768
    assert config.rms_norm_eps == 1e-5
    assert config.use_cache is True
    assert config.bias is False
    assert config.tie_word_embeddings is False
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert config.rope_theta == 1_000_000
    assert config.rope_scaling is None


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("rope_type", ["linear", "dynamic"])
def test_rope_scaling_in_both_spellings(key, rope_type, tmp_path):
    scaling = {key: rope_type, "factor": 3}
    config = InternLM2Config(rope_scaling=scaling)
    assert (config.rope_type, config.rope_factor) == (rope_type, 3.0)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written["rope_scaling"] == scaling
    assert written["rope_theta"] == 1_000_000
    assert "rope_parameters" not in written
    loaded = InternLM2Config.from_pretrained(tmp_path)
    assert (loaded.rope_type, loaded.rope_factor, loaded.rope_scaling) == (rope_type, 3.0, scaling)


def test_no_rope_scaling(tmp_path):
    config = InternLM2Config(rope_scaling=None)
    assert (config.rope_type, config.rope_factor) == ("default", 1.0)
    config.save_pretrained(tmp_path)
    assert InternLM2Config.from_pretrained(tmp_path).rope_scaling is None
    assert InternLM2Config(rope_scaling={"type": "default"}).rope_type == "default"


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, {"rope_type": "default"}),
        ({"type": "linear", "factor": 2}, {"rope_type": "linear", "factor": 2.0}),
        ({"type": "dynamic", "factor": 3.0}, {"rope_type": "dynamic", "factor": 3.0}),
        ({"rope_type": "dynamic", "factor": 3.0}, {"rope_type": "dynamic", "factor": 3.0}),
    ],
)
def test_rope_parameters_say_what_the_published_keys_say(scaling, expected):
    config = InternLM2Config(rope_theta=10_000, rope_scaling=scaling)
    assert config.rope_parameters == {"rope_theta": 10_000, **expected}
    config.rope_parameters = config.rope_parameters
    assert config.rope_scaling == scaling
    assert "rope_parameters" not in config.to_dict()


def test_rope_parameters_can_be_assigned():
    config = InternLM2Config(rope_scaling={"type": "dynamic", "factor": 3.0})
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    assert (config.rope_theta, config.rope_type, config.rope_factor) == (500.0, "linear", 2.0)
    config.rope_parameters = None
    assert (config.rope_theta, config.rope_scaling) == (500.0, None)
    with pytest.raises(ValueError, match="type 'yarn'"):
        config.rope_parameters = {"rope_type": "yarn", "factor": 2.0}


def test_a_file_with_rope_parameters_alone():
    config = InternLM2Config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0})
    assert (config.rope_theta, config.rope_type, config.rope_factor) == (500.0, "dynamic", 2.0)


def test_no_key_value_heads_means_one_for_each_query_head():
    assert InternLM2Config(num_key_value_heads=None).num_key_value_heads == 48


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 50, "num_attention_heads": 4}, "hidden_size and num_attention_heads are 50 and 4"),
        ({"num_key_value_heads": 5}, "num_attention_heads and num_key_value_heads are 48 and 5"),
        ({"hidden_size": 48 * 3}, r"head_dim and 2 \(rotary pairs\) are 3 and 2"),
    ],
)
def test_sizes_that_do_not_divide(sizes, message):
    with pytest.raises(ValueError, match=f"{message}; the first must be a multiple of the second"):
        InternLM2Config(**sizes)


@pytest.mark.parametrize("scaling", [{"type": "yarn", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}])
def test_rope_types_that_are_not_internlm2s(scaling):
    with pytest.raises(ValueError, match="type 'yarn'; InternLM2 knows 'default', 'linear', 'dynamic'"):
        InternLM2Config(rope_scaling=scaling)


@pytest.mark.parametrize("factor", [0.5, -1, "3", None, True])
def test_rope_factors_that_are_none(factor):
    with pytest.raises(ValueError, match=f"factor {factor!r}; expected a number of at least 1"):
        InternLM2Config(rope_scaling={"type": "dynamic", "factor": factor})


def test_tied_embeddings():
    with pytest.raises(ValueError, match="InternLM2 has an output head of its own; set it to false"):
        InternLM2Config(tie_word_embeddings=True)


@pytest.mark.parametrize(
    "edit",
    [
        lambda parameters: parameters.update(rope_type="dynamic", factor=3.0),
        lambda parameters: parameters.update({"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}),
        lambda parameters: parameters.__ior__({"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_edits_of_rope_parameters_keep(edit):
    config = InternLM2Config()
    expected = dict(config.rope_parameters)
    edit(config.rope_parameters)
    edited = dict(config.rope_parameters)
    assert edited != expected
    assert (config.rope_type, config.rope_factor) == (edited["rope_type"], edited["factor"])
    config.rope_parameters["factor"] = 4.0
    assert config.rope_scaling["factor"] == 4.0
    del config.rope_parameters["factor"]
    assert "factor" not in config.rope_scaling
    config.rope_parameters.clear()
    assert config.rope_scaling is None
    config.rope_parameters.setdefault("rope_theta", 1.0)
    assert config.rope_theta == edited["rope_theta"]


def test_edits_that_internlm2_does_not_know():
    with pytest.raises(ValueError, match="rope_scaling has type 'yarn'; InternLM2 knows"):
        InternLM2Config().rope_parameters.update(rope_type="yarn", factor=2.0)
    copied = copy.deepcopy(InternLM2Config().rope_parameters)
    assert copied == {"rope_theta": 1_000_000, "rope_type": "default"}
