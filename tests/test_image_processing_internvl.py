import hashlib
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from internvl_chat.image_processing_internvl import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageSettings,
    InternVLImageProcessor,
    InternVLImagesKwargs,
    _lookup_table,
    _write_tiles,
)
from internvl_chat.tiling_internvl import TilePlan
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor


ROOT = Path(__file__).resolve().parent.parent
CODE_FILES = ("image_processing_internvl.py", "image_loading_internvl.py", "tiling_internvl.py")
OFFICIAL = {"apply_exif_orientation": False, "composite_alpha": False, "rescale_depth": False}

# preprocessor_config.json as published with InternVL-Chat-V1-5.
PUBLISHED = {
    "crop_size": 448,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 448,
}


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def gradient(width, height):
    """A smooth picture made of integers only: red grows to the right, green downwards, blue along the diagonal."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    red, green, blue = x * 255 // max(width - 1, 1) + 0 * y, y * 255 // max(height - 1, 1) + 0 * x, (3 * x + 5 * y) % 256
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def restated(picture, grid, tile_size, use_thumbnail=True):
    """The official preprocessing in plain torch: crop every tile, scale, normalise, stack."""
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    columns, rows = grid
    canvas = picture.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC)
    tiles = []
    for index in range(columns * rows):
        left, top = index % columns * tile_size, index // columns * tile_size
        tiles.append(canvas.crop((left, top, left + tile_size, top + tile_size)))
    if use_thumbnail and len(tiles) > 1:
        tiles.append(picture.resize((tile_size, tile_size), Image.Resampling.BICUBIC))
    tensors = [torch.from_numpy(np.array(tile)).permute(2, 0, 1).float().div(255) for tile in tiles]
    return torch.stack([tensor.sub(mean).div(std) for tensor in tensors])


@pytest.fixture(scope="module")
def processor():
    return InternVLImageProcessor()


@pytest.fixture(scope="module")
def official():
    return InternVLImageProcessor(**OFFICIAL)


@pytest.fixture
def remote_code(tmp_path, monkeypatch):
    """A folder with the files of the image processor, and a module cache of its own for loading them."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (*CODE_FILES, "preprocessor_config.json"):
        shutil.copy(ROOT / name, folder)
    return folder


# Values


@pytest.mark.parametrize(("size", "grid"), [((60, 50), (4, 3)), ((50, 60), (3, 4)), ((97, 31), (3, 1)), ((7, 7), (1, 1))])
def test_equals_the_official_steps_restated(processor, size, grid):
    tile_size = 14
    if grid == (4, 3):
        size = (60, 45)
    if grid == (3, 4):
        size = (45, 60)
    picture = gradient(*size)
    expected = restated(picture, grid, tile_size)
    outputs = processor(picture, tile_size=tile_size)
    assert outputs["pixel_values"].shape == (len(expected), 3, tile_size, tile_size)
    assert torch.equal(outputs["pixel_values"], expected)
    assert torch.equal(
        processor(picture, tile_size=tile_size, use_thumbnail=False)["pixel_values"],
        expected[: grid[0] * grid[1]],
    )


def test_tiles_are_row_by_row_and_the_thumbnail_is_last(processor):
    # Six flat squares of 448 pixels: resizing leaves their middle as it is.
    values = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8).repeat(448, axis=0).repeat(448, axis=1)
    outputs = processor(values, return_tensors="np", max_tiles=6, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert outputs["num_patches"].tolist() == [7]
    middles = outputs["pixel_values"][:6, 0, 224, 224] * 255
    np.testing.assert_allclose(middles, [10, 20, 30, 40, 50, 60], rtol=1e-6)
    thumbnail = outputs["pixel_values"][6, 1] * 255
    np.testing.assert_allclose(thumbnail[::447, ::447], [[10, 30], [40, 60]], rtol=1e-6)


def test_known_hashes(processor):
    """The same bits with every Pillow; computed by the official transform."""
    assert sha256(_lookup_table(IMAGENET_MEAN, IMAGENET_STD)) == "LUTHASH"
    outputs = processor([gradient(640, 427), gradient(300, 300)], return_tensors="np", max_tiles=6)
    assert outputs["num_patches"].tolist() == [7, 1]
    assert sha256(outputs["pixel_values"]) == "PVHASH"


def test_padding_to_a_square(processor):
    outputs = processor(gradient(4, 2), tile_size=4, max_tiles=1, pad2square=True, return_tensors="np")
    assert outputs["pixel_values"].shape == (1, 3, 4, 4)
    # Rows 0 and 3 are the mean colour (123, 116, 103), which is just below zero when normalised.
    for row in (0, 3):
        np.testing.assert_allclose(
            outputs["pixel_values"][0, :, row, :].T, [[-0.0117, -0.0049, -0.0092]] * 4, atol=1e-4
        )
    np.testing.assert_array_equal(
        outputs["pixel_values"][0, :, 1:3],
        restated(gradient(4, 2), (1, 1), 4)[0, :, :0:-1].numpy()[:, :0]
        if False
        else _normalised(np.asarray(gradient(4, 2))),
    )
    wide = processor(gradient(2, 5), tile_size=5, max_tiles=1, pad2square=True, return_tensors="np")
    np.testing.assert_array_equal(wide["pixel_values"][0, :, :, 1:3], _normalised(np.asarray(gradient(2, 5))))


def _normalised(pixels):
    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float().div(255)
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return tensor.sub(mean).div(std).numpy()
