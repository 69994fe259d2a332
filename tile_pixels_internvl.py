"""From an RGB image to normalised tiles, equal to the official code bit for bit, shared by the CPU's threads.

PIL resizes, NumPy normalises (arXiv 2404.16821, section 3.3: the tiles of the grid row by row, then the thumbnail).
"""

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from .tiling_internvl import TilePlan


def write_tiles(
    image: Image.Image, plan: TilePlan, mean: tuple[float, ...], std: tuple[float, ...], out: torch.Tensor
) -> None:
    """Resize an image, cut it by the plan and write the normalised tiles to `out`.

    PIL resizes in two passes. Where the width comes first, what the second pass makes of a column of tiles depends on
    that column alone, and columns are made side by side; else the whole canvas is one piece of work.

    Args:
        image: An RGB image.
        plan: Its tiles.
        mean: Mean per channel (R, G, B) of values in 0..1.
        std: Standard deviation per channel of values in 0..1.
        out: Where the tiles go, (num_tiles, 3, tile_size, tile_size), of any floating point type.
    """
    side, (width, height) = plan.tile_size, plan.canvas_size
    first_height = image.height if _resizes_width_first(image.size, plan.canvas_size) else height
    # The thumbnail is made from the image, not from the canvas, which has other proportions.
    sizes = [(width, first_height)] + [(side, side)] * plan.has_thumbnail
    wide, *thumbnail = _in_threads([partial(_resize, image, size) for size in sizes])

    def make_column(left: int) -> list[np.ndarray]:
        return _bands(_resize(wide.crop((left, 0, left + side, first_height)), (side, height)))

    columns = _in_threads([partial(make_column, left) for left in range(0, width, side)])
    tiles = [[band[top : top + side] for band in column] for top in range(0, height, side) for column in columns]
    tiles += map(_bands, thumbnail)
    _in_threads([partial(_normalise, tile, mean, std, values) for tile, values in zip(tiles, out, strict=True)])


def empty_tiles(num_tiles: int, side: int, dtype: torch.dtype) -> torch.Tensor:
    """Make tiles of unset values (num_tiles, 3, side, side).

    NumPy asks the system for huge pages of memory, which PyTorch does not: they fill faster.
    """
    shape = (num_tiles, 3, side, side)
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def pad_to_square(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """Put an RGB image in the middle of a square of the mean colour; rounded down where it cannot be the middle."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC)


@cache
def pillow_generation() -> int:
    """Return the first number of the installed Pillow's release."""
    return int(version("pillow").split(".")[0])


def _resizes_width_first(size: tuple[int, int], new_size: tuple[int, int]) -> bool:
    """Return whether PIL is known to resize an image's width before its height: the first pass rounds for the second.

    So did all releases before Pillow 13, which begins with a height that shrinks by more than twice as many pixels as
    the width (found by trying). What later releases do with heights that shrink is not known.
    """
    pillow = pillow_generation()
    loss, height_loss = (old - new for old, new in zip(size, new_size, strict=True))
    return height_loss <= 0 or pillow < 13 or (pillow == 13 and height_loss <= 2 * loss)


def _bands(image: Image.Image) -> list[np.ndarray]:
    """Split an RGB image: red, green and blue, each (height, width), uint8."""
    shape = (image.height, image.width)
    return [np.frombuffer(image.tobytes("raw", band), dtype=np.uint8).reshape(shape) for band in "RGB"]


def _normalise(
    bands: Sequence[np.ndarray], mean: tuple[float, ...], std: tuple[float, ...], out: torch.Tensor
) -> None:
    """Write the bands of a tile to `out` (3, height, width), normalised in float32 whatever the type of `out`.

    The order of the operations, each rounded to float32, is that of torchvision's `ToTensor` and `Normalize`.
    """
    normalised = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    for band, band_mean, band_std, values in zip(bands, mean, std, normalised.numpy(), strict=True):
        np.divide(band, np.float32(255), out=values, dtype=np.float32)
        np.subtract(values, np.float32(band_mean), out=values)
        np.divide(values, np.float32(band_std), out=values)
    if normalised is not out:
        out.copy_(normalised)


def _in_threads(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run tasks in as many threads as PyTorch uses, this one among them, and return what each returns.

    In the workers of a DataLoader that is this thread alone. If a task fails, the others are finished or left out.
    """
    waiting, results = deque(enumerate(tasks)), [None] * len(tasks)

    def work() -> None:
        while waiting:
            try:
                index, task = waiting.popleft()
            except IndexError:  # another thread took the last one just now
                return
            try:
                results[index] = task()
            except BaseException:
                waiting.clear()
                raise

    num_threads = torch.get_num_threads()
    others = [_executor(os.getpid(), num_threads).submit(work) for _ in range(min(num_threads, len(tasks)) - 1)]
    try:
        work()
    finally:
        started = [other for other in others if not other.cancel()]
        wait(started)
    for other in started:
        other.result()
    return results


@lru_cache(maxsize=1)
def _executor(process_id: int, num_threads: int) -> ThreadPoolExecutor:
    """Keep threads from call to call: new ones would begin with no memory and fetch it page by page.

    A forked process has none of its parent's threads and needs its own.
    """
    return ThreadPoolExecutor(num_threads, thread_name_prefix=f"tiles-{process_id}")
