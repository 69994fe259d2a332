"""The throw-away heads read patches in the order of the pixel shuffle, and give no loss to what is right."""

import pytest
import torch
from internvl_chat.modeling_internvl_chat import pixel_shuffle
from training_scenes import ROOT  # noqa: F401  (puts the repository on the path)

from training import heads
from training.tiles import BOX_STEPS


pytestmark = pytest.mark.newest


def test_labels_of_patches_follow_the_pixel_shuffle():
    labels = torch.arange(2 * 4 * 4).view(2, 4, 4, 1)
    shuffled = pixel_shuffle(labels, 2).flatten(1, 2)  # (tiles, cells, patches of a cell)
    reader = heads.TrainingHeads(vision_width=8, hidden_size=8, per_cell=2)
    assert torch.equal(reader._by_cell(labels)[..., 0], shuffled)


def test_edges_that_are_told_right_cost_nothing():
    reader = heads.TrainingHeads(vision_width=8, hidden_size=8, per_cell=2)
    edges = torch.tensor([[0, 5, BOX_STEPS, BOX_STEPS]])
    classes = BOX_STEPS + 1
    with torch.no_grad():
        reader.finding_reader.weight.zero_()
        reader.finding_reader.bias.zero_()
        reader.finding_reader.bias[torch.arange(4) * classes + edges[0]] = 20.0
    states = torch.zeros(1, 8)
    assert reader.finding_loss(states, edges) < 1e-3
    assert reader.finding_loss(states, edges.flip(1)) > 10
