"""The 35 published layouts in full size, on the meta device: names of weights, numbers of parameters, configs."""

import copy
import json
import re

import pytest
import torch
from family import published_layouts
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel


LAYOUTS = published_layouts()
# One for each language model and vision encoder; the others differ by sizes.
FAST = ("InternVL-Chat-V1-2", "InternVL2-2B", "InternVL2-4B (longrope)", "InternVL3-1B", "InternVL3-9B")
FAST += ("InternVL3_5-1B", "InternVL3_5-30B-A3B", "InternVL3_5-GPT-OSS-20B-A4B")
OFFICIAL = {
    "InternVL-Chat-V1-2": "internvl-chat-v1-2",
    "InternVL-Chat-V1-5": "internvl-chat-v1-5",
    "InternVL2-1B": "internvl2-1b",
    "InternVL2-8B(-MPO)": "internvl2-8b",
    "Mini-InternVL-Chat-2B-V1-5": "mini-internvl-chat-2b-v1-5",
    "Mini-InternVL-Chat-4B-V1-5 (su)": "mini-internvl-chat-4b-v1-5",
}
# The weights of one layer of each language model, as published; experts are one name, for releases fuse them.
ATTENTION = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
]
QKV_BIASES = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
MLP = ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
QK_NORMS = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
LLAMA = [*ATTENTION, *MLP, *NORMS]
LAYERS = {
    "llama": LLAMA,
    "internlm3": LLAMA,
    "qwen2": [*LLAMA, *QKV_BIASES],
    "qwen3": [*LLAMA, *QK_NORMS],
    "qwen3_moe": [*ATTENTION, *QK_NORMS, *NORMS, "mlp.gate.weight", "mlp.experts"],
    "gpt_oss": [*ATTENTION, *QKV_BIASES, *NORMS, "self_attn.o_proj.bias", "self_attn.sinks"]
    + ["mlp.router.weight", "mlp.router.bias", "mlp.experts"],
    "phi3": ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight"]
    + NORMS,
    "internlm2": ["attention.wqkv.weight", "attention.wo.weight", "attention_norm.weight", "ffn_norm.weight"]
    + ["feed_forward.w1.weight", "feed_forward.w2.weight", "feed_forward.w3.weight"],
}
EMBEDDINGS = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
ENDS = {"internlm2": ["model.tok_embeddings.weight", "model.norm.weight", "output.weight"]}


def published_names(config):
    """Return the names of a published checkpoint's weights, by rule."""
    llm, vision = config["llm_config"], config["vision_config"]
    names = [f"mlp1.{index}.{kind}" for index in (0, 1, 3) for kind in ("weight", "bias")]
    ends = ENDS.get(llm["model_type"], EMBEDDINGS)
    layers = [
        f"model.layers.{i}.{name}" for i in range(llm["num_hidden_layers"]) for name in LAYERS[llm["model_type"]]
    ]
    names += [f"language_model.{name}" for name in (*ends, *layers)]
    layer = ["ls1", "ls2", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias", "norm1.weight", "norm2.weight"]
    layer += [f"mlp.{fc}.{kind}" for fc in ("fc1", "fc2") for kind in ("weight", "bias")]
    layer += ["attn.qkv.bias"] if vision["qkv_bias"] else []
    layer += ["attn.q_norm.weight", "attn.k_norm.weight"] if vision["qk_normalization"] else []
    layer += ["norm1.bias", "norm2.bias"] if vision["norm_type"] == "layer_norm" else []
    embeddings = ["class_embedding", "position_embedding", "patch_embedding.weight", "patch_embedding.bias"]
    names += [f"vision_model.embeddings.{name}" for name in embeddings]
    return {
        *names,
        *(f"vision_model.encoder.layers.{i}.{name}" for i in range(vision["num_hidden_layers"]) for name in layer),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in LAYOUTS]
)
def test_a_layout_in_full_size(name, goldens, tmp_path):
    published, billions = LAYOUTS[name]
    config = InternVLChatConfig(**copy.deepcopy(published))
    with torch.device("meta"):
        model = InternVLChatModel(config)
    weights = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert {re.sub(r"\.experts\..*", ".experts", key) for key in weights} == published_names(published)
    if name in OFFICIAL:
        assert weights == json.loads((goldens / "shapes.json").read_text("utf-8"))[OFFICIAL[name]]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.002), "as the model card says"
    # The model's own config, which building may have changed, is the one that is saved and read.
    model.config.save_pretrained(tmp_path)
    assert InternVLChatConfig.from_pretrained(tmp_path).to_dict() == model.config.to_dict()
