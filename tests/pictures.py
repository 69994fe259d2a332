"""Pictures to cut, and the official preprocessing restated."""

import numpy as np
import torch
from internvl_chat.image_processing_internvl import IMAGENET_MEAN, IMAGENET_STD
from PIL import Image


def gradient(width, height):
    """Red grows to the right and green downwards; blue runs along the diagonal and jumps."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    channels = np.broadcast_arrays(255 * x // width, 255 * y // height, (3 * x + 5 * y) % 256)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def normalised(picture):
    """What torchvision's ToTensor and Normalize make of an 8-bit picture, step by step: (3, height, width)."""
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255).sub(mean).div(std)


def official_steps(picture, columns, rows, side):
    """The official preprocessing restated: resize, crop each tile, normalise it, thumbnail last, stack."""
    canvas = picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
    tiles = [canvas.crop((left, top, left + side, top + side)) for left, top in corners]
    if len(tiles) > 1:
        tiles.append(picture.resize((side, side), Image.Resampling.BICUBIC))
    return torch.stack([normalised(tile) for tile in tiles])
