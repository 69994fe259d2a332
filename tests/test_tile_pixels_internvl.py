import multiprocessing
import time

import numpy as np
import pytest
import torch
from internvl_chat import tile_pixels_internvl
from internvl_chat.image_processing_internvl import IMAGENET_MEAN, IMAGENET_STD, InternVLImageProcessor
from internvl_chat.tile_pixels_internvl import _bands, _in_threads, _normalise, _resizes_width_first, write_tiles
from internvl_chat.tiling_internvl import TilePlan
from pictures import gradient, normalised, official_steps
from PIL import Image


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((1, 1), (1, 1)),
        ((1, 700), (1, 5)),
        ((700, 1), (5, 1)),
        ((131, 257), (2, 3)),
        ((28, 28), (2, 2)),  # nothing to resize
        ((97, 128), (7, 4)),
    ],
)
def test_threads_change_nothing(size, grid, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    columns, rows = grid
    plan = TilePlan(columns, rows, tile_size=14, has_thumbnail=columns * rows > 1)
    out = torch.full((plan.num_tiles, 3, 14, 14), torch.nan)
    write_tiles(picture, plan, IMAGENET_MEAN, IMAGENET_STD, out=out)
    assert torch.equal(out, official_steps(picture, columns, rows, side=14))


def test_pass_order_of_pil():
    """Wherever the width is said to come first, two separate passes give PIL's own result."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(8, 120, (300, 4)).tolist()
    sizes += [(90, 100, 80, 80), (90, 100, 80, 79), (90, 100, 100, 99), (90, 100, 100, 101), (50, 50, 50, 49)]
    width_first = 0
    for width, height, new_width, new_height in sizes:
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if _resizes_width_first(picture.size, (new_width, new_height)):
            width_first += 1
            passes = picture.resize((new_width, height), Image.Resampling.BICUBIC)
            passes = passes.resize((new_width, new_height), Image.Resampling.BICUBIC)
            assert passes == picture.resize((new_width, new_height), Image.Resampling.BICUBIC), picture.size
    assert width_first > 150


@pytest.mark.parametrize(("release", "first"), [("9.5.0", True), ("13.1", False), ("14.0.0.dev0", False)])
def test_pass_order_by_release(release, first, monkeypatch):
    tile_pixels_internvl.pillow_generation.cache_clear()
    monkeypatch.setattr(tile_pixels_internvl, "version", lambda name: release)
    assert _resizes_width_first((90, 100), (80, 79)) == first
    assert _resizes_width_first((90, 100), (80, 80)) == (release != "14.0.0.dev0")
    assert _resizes_width_first((90, 100), (80, 100))
    tile_pixels_internvl.pillow_generation.cache_clear()


def _tiles_in_child(picture):
    return InternVLImageProcessor(tile_size=14)(picture)["pixel_values"].numpy()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    picture = gradient(60, 45)
    expected = InternVLImageProcessor(tile_size=14)(picture)["pixel_values"]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        values = pool.apply_async(_tiles_in_child, (picture,)).get(timeout=60)
    np.testing.assert_array_equal(values, expected.numpy())


def test_every_sample_is_normalised_as_by_the_official_transform():
    samples = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
    values = torch.empty(3, 1, 256)
    _normalise(_bands(samples), IMAGENET_MEAN, IMAGENET_STD, out=values)
    assert torch.equal(values, normalised(samples))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_tasks_give_their_results_in_order(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert _in_threads([lambda number=number: number**2 for number in range(9)]) == [0, 1, 4, 9, 16, 25, 36, 49, 64]
    assert _in_threads([]) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failing_task_stops_the_others_before_it_is_told(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    running, done = [], []

    def work(number):
        running.append(number)
        if number == 3:
            raise MemoryError("no room")
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(MemoryError, match="no room"):
        _in_threads([lambda number=number: work(number) for number in range(200)])
    finished = len(done)
    time.sleep(0.05)
    assert len(done) == finished == len(running) - 1 < 199
