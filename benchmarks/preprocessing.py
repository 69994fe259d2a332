"""How long do pictures take to become tiles?

    python -m benchmarks.preprocessing

Peers: the official way (resize, crop, then torchvision's `Resize`, `ToTensor` and `Normalize` for every tile, restated
here without torchvision), and Transformers' GotOcr2 image processors, on PIL and on torchvision where it is installed.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from benchmarks import measure
from benchmarks.models import OURS


OFFICIAL = "official per-tile transform"
# Tiles with thumbnail -> size of a picture that becomes so many, and the most tiles that are allowed.
PICTURES = {1: ((448, 448), 12), 7: ((1300, 870), 12), 9: ((1280, 640), 12), 13: ((1600, 1200), 12)}
PICTURES[29] = ((3840, 2160), 40)
SIDE = 448


def draw_picture(size: tuple[int, int]) -> Image.Image:
    """Make a picture that is smooth with some noise, like a photograph."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size[1] // 16 + 2, size[0] // 16 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8))


def official_transform(
    picture: Image.Image, columns: int, rows: int, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Do what the official example does with a picture, step by step.

    Args:
        picture: Any picture.
        columns: Of the grid.
        rows: Of the grid.
        mean: Per channel (3, 1, 1).
        std: Per channel (3, 1, 1).

    Returns:
        Tiles (num_tiles, 3, 448, 448), float32.
    """
    canvas = picture.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
    corners = [(column * SIDE, row * SIDE) for row in range(rows) for column in range(columns)]
    tiles = [canvas.crop((left, top, left + SIDE, top + SIDE)) for left, top in corners]
    if len(tiles) > 1:
        tiles.append(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    values = []
    for tile in tiles:
        tile = tile.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        samples = torch.from_numpy(np.array(tile)).permute(2, 0, 1).contiguous()  # (3, 448, 448)
        values.append(samples.to(torch.float32).div(255).clone().sub_(mean).div_(std))
    return torch.stack(values)


def transformers_processor(module: str, name: str, max_tiles: int) -> Callable[[Image.Image], Any]:
    """Return Transformers' processor as a function of a picture."""
    processor = getattr(importlib.import_module(f"transformers.models.got_ocr2.{module}"), name)()
    settings = {"crop_to_patches": True, "min_patches": 1, "max_patches": max_tiles, "return_tensors": "pt"}
    size = {"height": SIDE, "width": SIDE}
    return lambda picture: processor(images=picture, size=size, **settings)


def main() -> None:
    """Measure and write the result."""
    line = measure.parser(__doc__, tiles=(7, 9, 29), repeats=15, has_model=False)
    options = line.parse_args()
    unknown = sorted(set(options.tiles) - set(PICTURES))
    if unknown:
        line.error(f"there are no pictures of {unknown} tiles, expected some of {sorted(PICTURES)}")
    measure.prepare(options)
    cases = (measure_picture(options, num_tiles) for num_tiles in options.tiles)
    measure.write("preprocessing", "How long do pictures take to become tiles?", options, cases)


def measure_picture(options: argparse.Namespace, num_tiles: int) -> list[dict]:
    """Measure all subjects on one picture."""
    size, max_tiles = PICTURES[num_tiles]
    picture = draw_picture(size)
    ours = AutoImageProcessor.from_pretrained(measure.ROOT, trust_remote_code=True, max_tiles=max_tiles)
    plan = ours.plan(picture)
    mean, std = (torch.tensor(values)[:, None, None] for values in (ours.image_mean, ours.image_std))
    calls = {
        OFFICIAL: lambda: official_transform(picture, plan.columns, plan.rows, mean, std),
        OURS: lambda: ours(picture)["pixel_values"],
    }
    if not torch.equal(calls[OURS](), calls[OFFICIAL]()):
        sys.exit(f"The tiles of a picture of {size} pixels differ from the official ones; times would mean nothing.")
    on_pil = transformers_processor("image_processing_pil_got_ocr2", "GotOcr2ImageProcessorPil", max_tiles)
    calls["Transformers on PIL"] = lambda: on_pil(picture)
    case = f"{plan.num_tiles} tiles of {size[0]} x {size[1]}"
    skipped = []
    if is_torchvision_available():
        on_torchvision = transformers_processor("image_processing_got_ocr2", "GotOcr2ImageProcessor", max_tiles)
        calls["Transformers on torchvision"] = lambda: on_torchvision(picture)
    else:
        skipped = [{"case": case, "who": "Transformers on torchvision", "skipped": "torchvision is not installed"}]
    seconds = measure.in_turns(calls, options.repeats)
    return [*measure.rows(case, measure.milliseconds(seconds), "ms", OFFICIAL), *skipped]


if __name__ == "__main__":
    main()
