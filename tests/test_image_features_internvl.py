"""The handle of encoded pictures keeps features and pictures together, and a text has a place for each feature."""

import pytest
import torch
from internvl_chat.image_features_internvl import EncodedImages, check_image_tokens


FEATURES = torch.arange(24.0).reshape(4, 3, 2)  # 4 tiles of 3 image tokens


def test_sizes():
    pictures = EncodedImages(FEATURES, (3, 1))
    assert (len(pictures), pictures.tile_tokens, pictures.num_tiles) == (4, 3, (3, 1))


def test_split_shares_memory():
    first, second = EncodedImages(FEATURES, (3, 1)).split()
    assert (first.num_tiles, second.num_tiles) == ((3,), (1,))
    assert torch.equal(first.features, FEATURES[:3])
    assert torch.equal(second.features, FEATURES[3:])
    assert first.features.data_ptr() == FEATURES.data_ptr()


def test_equal_is_the_same():
    pictures = EncodedImages(FEATURES, (4,))
    assert pictures == pictures
    assert pictures != EncodedImages(FEATURES, (4,))


@pytest.mark.parametrize("num_tiles", [(), (3,), (4, 0), (5, -1)])
def test_counts_that_do_not_fit(num_tiles):
    with pytest.raises(ValueError, match=r"num_tiles .* but there are features of 4\. Give the number of tiles"):
        EncodedImages(FEATURES, num_tiles)


def test_places_and_features():
    check_image_tokens(8, 8, 93)
    with pytest.raises(ValueError, match=r"has 4 image tokens \(id 93\), but the images have 8 features\. Build both"):
        check_image_tokens(4, 8, 93)
