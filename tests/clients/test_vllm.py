"""vLLM's readers of config, tokenizer and pictures, unchanged, without its engine."""

import pytest


@pytest.fixture
def config(client, tiny_folder):
    reader = client("vllm", "vllm.transformers_utils.config")
    return reader.get_config(str(tiny_folder), trust_remote_code=True)


def test_config_reader(config):
    assert config.architectures == ["InternVLChatModel"]
    assert config.text_config.architectures == ["InternLM2ForCausalLM"]
    assert config.get_text_config().hidden_size == 192


def test_rope_as_the_language_model_reads_it(config):
    rope = config.text_config.rope_parameters
    assert rope["rope_type"] == "dynamic"
    assert rope["factor"] == 3.0
    assert rope["rope_theta"] == 10000


def test_processor(client, config, tiny_folder, shapes):
    """vLLM's own processor, built as its model class builds it, finds our tokens and our number of tiles."""
    from transformers import AutoProcessor, AutoTokenizer  # noqa: PLC0415

    module = client("vllm", "vllm.transformers_utils.processors.internvl")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, trust_remote_code=True)
    image_processor = module.InternVLChatImageProcessor(
        image_size=config.vision_config.image_size,
        min_dynamic_patch=config.min_dynamic_patch,
        max_dynamic_patch=config.max_dynamic_patch,
        dynamic_image_size=config.dynamic_image_size,
        use_thumbnail=config.use_thumbnail,
    )
    patches = (image_processor.image_size // config.vision_config.patch_size) ** 2
    processor = module.InternVLChatProcessor(
        image_processor, tokenizer, image_seq_length=int(patches * config.downsample_ratio**2)
    )
    assert processor.ctx_image_token_id == config.image_token_id
    inputs = processor(text="<image>\nWhat is it?", images=shapes, return_tensors="pt")
    ours = AutoProcessor.from_pretrained(tiny_folder, trust_remote_code=True)
    expected = ours.image_processor(shapes, return_tensors="pt")
    assert inputs["image_num_patches"].tolist() == expected["num_patches"].tolist()
    assert (inputs["pixel_values_flat"] - expected["pixel_values"]).abs().max() < 1e-5
    image_tokens = (inputs["input_ids"] == config.image_token_id).sum()
    assert image_tokens == ours.count_image_tokens(shapes)[0]
