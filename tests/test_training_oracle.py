"""Oracle tokens tell apart what a question may ask about."""

import pytest
import torch
from training_scenes import GEOMETRY, scene

from training import tiles
from training.oracle import OracleCodes, as_tensors


pytestmark = pytest.mark.newest


def test_tokens_differ_where_cells_do():
    labels = as_tensors(tiles.label_tiles(scene("oracle", digits=4), (1, 1), GEOMETRY))
    tokens = OracleCodes(192, seed=0, cells=8)(labels)
    assert tokens.shape == (1, 64, 192)
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(1, 64), atol=1e-3, rtol=0)
    empty = (labels["kinds"] == 0) & (labels["chars"][..., 0] == 0) & (labels["edges"][..., 0] == 0)
    for first in range(64):
        for second in range(first):
            alike = bool(empty[0, first] and empty[0, second])
            assert torch.allclose(tokens[0, first], tokens[0, second], atol=1e-4) == alike


def test_near_edges_have_similar_codes():
    edges = OracleCodes(192, seed=0, cells=8).edges[0, 1:]
    distance = (edges - edges[10]).norm(dim=-1)
    assert distance[10] == 0
    assert 0.1 < distance[11] < distance[13]
    assert distance[distance > 0].min() > 0.1


def test_the_seed_decides():
    assert torch.equal(OracleCodes(64, 1, 8).characters, OracleCodes(64, 1, 8).characters)
    assert not torch.equal(OracleCodes(64, 1, 8).characters, OracleCodes(64, 2, 8).characters)
