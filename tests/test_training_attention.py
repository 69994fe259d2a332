"""The attention of the training computes what the package's does, gradients included."""

import pytest
import torch
from tiny_models import prompt, tiles, tiny_model
from training_scenes import ROOT  # noqa: F401  (puts the repository on the path)

from training.attention import use_plain_attention


pytestmark = pytest.mark.newest


def trained_once(model, dtype):
    """A model's loss and gradients for two rows, the second padded."""
    input_ids = prompt(1).repeat(2, 1)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, -2:] = 0
    model = model.to(dtype)
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        pixel_values=tiles(2).to(dtype),
        image_flags=torch.ones(2, 1, dtype=torch.long),
        labels=input_ids.masked_fill(attention_mask == 0, -100),
    )
    output.loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return output.loss, gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_plain_products_equal_the_package(dtype, tolerance):
    eager, plain = tiny_model(), tiny_model()
    eager.set_attn_implementation("eager")
    use_plain_attention(plain)
    (loss, gradients), (plain_loss, plain_gradients) = trained_once(eager, dtype), trained_once(plain, dtype)
    torch.testing.assert_close(plain_loss, loss, atol=tolerance, rtol=tolerance)
    assert plain_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        assert (plain_gradients[name] - gradient).abs().max() <= tolerance * scale, name
