"""LMDeploy's readers and picture preparation, unchanged, without its engines."""

import pytest
import torch


@pytest.fixture
def architecture(client, tiny_folder):
    return client("lmdeploy", "lmdeploy.archs").get_model_arch(str(tiny_folder), trust_remote_code=True)


def test_architecture(client, architecture):
    name, config = architecture
    assert name == "InternVLChatModel"
    assert client("lmdeploy", "lmdeploy.archs").check_vl_llm("turbomind", config.to_dict())
    supported = client("lmdeploy", "lmdeploy.turbomind.supported_models").SUPPORTED_ARCHS
    assert supported[name] == "internvl"
    assert supported[config.llm_config.architectures[0]] == "internlm2"


@pytest.fixture
def vision(client, architecture, tiny_folder):
    module = client("lmdeploy", "lmdeploy.vl.model.internvl")
    vision = module.InternVLVisionModel(str(tiny_folder), hf_config=architecture[1], trust_remote_code=True)
    vision.build_preprocessor(trust_remote_code=True)
    return vision


def test_pictures_and_tokens(vision, tiny_folder, shapes):
    """Tiles and the number of image tokens are those of the package's own processor."""
    from transformers import AutoProcessor  # noqa: PLC0415

    vision.set_mm_feature_dtype(torch.float32)
    messages = [{"role": "user", "content": [{"type": "image", "data": shapes}, {"type": "text", "text": "What?"}]}]
    content = vision.preprocess(messages)[-1]["content"][0]
    ours = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)
    assert content["image_token_id"] == vision.config.image_token_id
    assert content["image_tokens"] == ours.count_image_tokens(shapes)[0]
    expected = ours.image_processor(shapes, return_tensors="pt")["pixel_values"]
    assert (content["pixel_values"] - expected).abs().max() < 1e-5


def test_whole_model_for_quantization(vision):
    vision.build_model(trust_remote_code=True)
    assert type(vision.vl_model).__name__ == "InternVLChatModel"
    assert vision.vl_model.dtype == torch.float16
