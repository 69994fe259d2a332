"""The model without its head gives the states that the head turns into the model's own logits."""

import pytest
import torch
from tiny_models import IMAGE_TOKEN, tiny_model
from torch.testing import assert_close


def make_inputs():
    """Two rows, the second padded on the right: a tile of 4 image tokens in each, and a dummy tile."""
    rows = torch.tensor([[1, 5, *[IMAGE_TOKEN] * 4, 7, 8], [1, *[IMAGE_TOKEN] * 4, 6, 2, 2]])
    return {
        "input_ids": rows,
        "attention_mask": torch.tensor([[1] * 8, [1] * 6 + [0] * 2]),
        "pixel_values": torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1)),
        "image_flags": torch.tensor([1, 1, 0]),
    }


@pytest.mark.parametrize("model_type", ["internlm2", "llama"])
@torch.no_grad()
def test_head_on_top_gives_the_logits(model_type):
    model, inputs = tiny_model(model_type), make_inputs()
    states = model.base_model(**inputs, use_cache=False).last_hidden_state
    assert states.shape == (2, 8, 24)
    assert_close(model.get_output_embeddings()(states), model(**inputs).logits)


@torch.no_grad()
def test_ready_embeddings():
    model, inputs = tiny_model(), make_inputs()
    names = ("input_ids", "pixel_values", "image_flags")
    embeds = model.embed_inputs(**{name: inputs[name] for name in names})
    ready = model.base_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    assert_close(ready.last_hidden_state, model.base_model(**inputs).last_hidden_state)


def test_places_must_fit():
    model, inputs = tiny_model(), make_inputs()
    inputs["input_ids"] = inputs["input_ids"][:, :4]  # what a trainer does that cuts at its max_length
    with pytest.raises(ValueError, match="Image features and image tokens do not match.*The text has 5"):
        model.base_model(**inputs | {"attention_mask": inputs["attention_mask"][:, :4]})


def test_transformers_sees_the_same_model():
    model = tiny_model()
    assert model.get_decoder() is model.language_model.get_decoder()
    assert model.base_model.config is model.config
    # Plans come from the parts, whatever the base says.
    assert model.supports_tp_plan
    assert any(name.startswith("language_model.") for name in model.tp_plan)
    assert {name.split(".")[0] for name in model.state_dict()} == {"vision_model", "mlp1", "language_model"}
