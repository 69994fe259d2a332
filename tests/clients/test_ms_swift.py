"""ms-swift's loader and template for InternVL, unchanged, on the embedded checkpoint."""

import pytest
import torch


@pytest.fixture
def loaded(client, tiny_folder):
    swift = client("ms-swift", "swift.model")
    return swift.get_model_processor(
        str(tiny_folder), model_type="internvl_chat", torch_dtype=torch.float32, device_map="cpu"
    )


def test_loader(loaded):
    model, tokenizer = loaded
    assert type(model).__name__ == "InternVLChatModel"
    assert type(tokenizer).__name__ == "InternLM2TokenizerFast"


@torch.no_grad()
def test_template_embeds_pictures(client, loaded, shapes_path):
    """Its template replaces image tokens by `extract_feature`; the same as the model does."""
    model, tokenizer = loaded
    client("ms-swift", "swift.template")
    from swift.template import get_template  # noqa: PLC0415

    template = get_template(tokenizer, template_type="internvl")
    template.set_mode("train")
    template.input_size, template.max_num = 224, 12
    messages = [
        {"role": "user", "content": "<image>What colour is the circle?"},
        {"role": "assistant", "content": "Red."},
    ]
    encoded = template.encode({"messages": messages, "images": [shapes_path]})
    batch = template.data_collator([encoded])
    embedded = template._post_encode(model, batch)["inputs_embeds"]
    loss = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    # The loader puts the language model's `forward` in place of the model's: this is the model's own.
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "labels")}
    expected = type(model).forward(model, **inputs).loss
    torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_dummy_tile_of_text_batches(loaded):
    """With DeepSpeed, ms-swift sends a tile of 32 pixels through the vision encoder when a batch has no picture."""
    with pytest.raises(ValueError, match="multiples of the patch size 14"):
        loaded[0].extract_feature(torch.zeros(1, 3, 32, 32))
