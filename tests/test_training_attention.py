"""The attention of the training computes what the package's does, gradients included."""

import pytest
import torch
from tiny_models import prompt, tiles, tiny_model
from training_scenes import ROOT  # noqa: F401  (finds the training)

from training.attention import PLAIN


pytestmark = pytest.mark.newest


def test_plain_products_equal_eager_attention():
    losses, gradients = [], []
    for backend in ("eager", PLAIN):
        model = tiny_model()
        model.language_model.set_attn_implementation(backend)
        input_ids = prompt(1).repeat(2, 1)
        attention_mask = torch.ones_like(input_ids)
        attention_mask[1, -2:] = 0
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=tiles(2),
            image_flags=torch.ones(2, 1, dtype=torch.long),
            labels=input_ids.masked_fill(attention_mask == 0, -100),
        )
        output.loss.backward()
        losses.append(output.loss)
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)
