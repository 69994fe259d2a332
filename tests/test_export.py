"""Graphs that are recorded for one size are right for others: nothing bakes the number of tiles or tokens in."""

import pytest
import torch
from tiny_models import tiles, tiny_model


pytestmark = pytest.mark.newest


class Vision(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.vision_model

    def forward(self, pixel_values):
        return self.model(pixel_values).last_hidden_state


class Features(Vision):
    def __init__(self, model):
        super().__init__(model)
        self.model = model

    def forward(self, pixel_values):
        return self.model.get_image_features(pixel_values)


class Decoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.language_model

    def forward(self, inputs_embeds):
        return self.model(inputs_embeds=inputs_embeds, use_cache=False).logits


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def embeds(model, batch, seq):
    return torch.randn(batch, seq, model.config.llm_config.hidden_size, generator=torch.Generator().manual_seed(seq))


def cases(model):
    """For each part of the model an input to record, one of another size, and which of its sizes are free."""
    tile_sizes = ({0: torch.export.Dim("tiles")},)
    yield Vision(model), tiles(3), tiles(5), tile_sizes
    # More tiles than `vision_batch_size`, which outside a graph divides them.
    yield Features(model), tiles(9), tiles(20), tile_sizes
    token_sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=512)},)
    yield Decoder(model), embeds(model, 2, 11), embeds(model, 3, 17), token_sizes


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("part", range(3), ids=["vision", "features", "decoder"])
@torch.no_grad()
def test_torch_export(model, part, strict):
    module, recorded, other, sizes = list(cases(model))[part]
    program = torch.export.export(module, (recorded,), dynamic_shapes=sizes, strict=strict)
    assert torch.equal(program.module()(other), module(other))


@pytest.mark.parametrize("part", range(3), ids=["vision", "features", "decoder"])
@torch.no_grad()
def test_jit_trace(model, part):
    module, recorded, other, _ = list(cases(model))[part]
    assert torch.equal(torch.jit.trace(module, recorded)(other), module(other))
