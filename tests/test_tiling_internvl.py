import ast
import inspect
from collections import defaultdict
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from internvl_chat.tiling_internvl import (
    TilePlan,
    checked_size,
    is_size,
    nearby_grids,
    plan_tiles,
    plan_together,
    tokens_per_tile,
)


def grid(width, height, **settings):
    plan = plan_tiles(width, height, **settings)
    return plan.columns, plan.rows


@cache
def allowed_grids(min_tiles, max_tiles):
    """Every grid within the limits, in the order of the official code."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0]))


def best_of_all(size, min_tiles, max_tiles, tile_size):
    """The official rule restated: all grids are tried in order."""
    width, height = size
    best, smallest = None, float("inf")
    for columns, rows in allowed_grids(min_tiles, max_tiles):
        difference = abs(width / height - columns / rows)
        if difference < smallest or (difference == smallest and width * height > 0.5 * tile_size**2 * columns * rows):
            best, smallest = (columns, rows), difference
    return best


def test_nearby_grids_in_order():
    assert nearby_grids(1.0, 1, 4) == [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)]
    assert nearby_grids(4.0, 3, 4) == [(3, 1), (2, 2), (4, 1)]
    assert nearby_grids(0.25, 3, 4) == [(1, 3), (1, 4), (2, 2)]
    assert nearby_grids(1.0, 7, 7) == [(1, 7), (7, 1)]


def test_the_best_of_the_nearby_grids_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        max_tiles = int(rng.choice([1, 2, 6, 12, 13, 24, 40, rng.integers(41, 90)]))
        min_tiles = int(rng.choice([1, max_tiles, rng.integers(1, max_tiles + 1)]))
        size = tuple(int(10**exponent) for exponent in rng.uniform(0, rng.choice([2, 4, 8]), 2))
        tile_size = int(rng.choice([448, 14, 1]))
        found = grid(*size, min_tiles=min_tiles, max_tiles=max_tiles, tile_size=tile_size)
        assert found == best_of_all(size, min_tiles, max_tiles, tile_size), (size, min_tiles, max_tiles)


def test_large_limits_are_searched_and_not_listed():
    assert len(nearby_grids(1.0, 1, 10**7)) < 20_000
    assert grid(1000, 999, max_tiles=10**7) == (1000, 999)
    assert counts([(1000, 999)] * 2, 10**4, max_tiles=10**7) == [4901, 4901]  # 70 x 70, and the thumbnail


def test_sizes():
    assert checked_size([np.int32(4), 5]) == (4, 5)
    assert all(map(is_size, ((4, 5), [4, 5], (4.5, 5), (4, 5, 6))))
    assert not any(map(is_size, ((), "45", ("4", "5"), [(4, 5)], None)))


@pytest.mark.parametrize("size", [(4.0, 5.0), (4, 5, 6), (4,), (), (0, 5), (-4, 5), ("4", "5"), None, 4])
def test_what_is_no_size(size):
    with pytest.raises(
        ValueError, match=r"The image size is .*, expected \(width, height\) in pixels: two whole numbers"
    ):
        checked_size(size)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (1, 1)),
        ((448, 448), (1, 1)),
        ((896, 448), (2, 1)),
        ((448, 896), (1, 2)),
        ((800, 1300), (2, 3)),
        ((1300, 800), (3, 2)),
        ((20000, 1), (12, 1)),
        ((1, 20000), (1, 12)),
        ((3840, 2160), (4, 2)),
        # Half way between 1 : 1 and 4 : 3, or between 1 : 2 and 2 : 3: rounding decides, as it did in training.
        ((7, 6), (4, 3)),
        ((7, 12), (2, 3)),
    ],
)
def test_best_grid(size, expected):
    assert grid(*size) == expected


def test_tie_goes_to_the_larger_grid_only_above_half_its_area():
    # 1x1, 2x2 and 3x3 share a ratio. Half of the area of 2x2 tiles is 401408 pixels, of 3x3 tiles 903168 pixels.
    assert grid(633, 633) == (1, 1)  # 400689 pixels
    assert grid(634, 634) == (2, 2)  # 401956
    assert grid(950, 950) == (2, 2)  # 902500
    assert grid(951, 951) == (3, 3)  # 904401
    # Half of 4x2 tiles of 2x2 pixels is 16 pixels.
    assert grid(4, 2, max_tiles=8, tile_size=2) == (2, 1)
    assert grid(6, 3, max_tiles=8, tile_size=2) == (4, 2)


def test_limits_are_kept():
    assert grid(3840, 2160, max_tiles=1) == (1, 1)
    assert grid(3840, 2160, max_tiles=24) == (5, 3)
    assert grid(3840, 2160, max_tiles=40) == (7, 4)
    assert grid(10, 10, min_tiles=4) == (2, 2)
    # With 1x1 excluded 1x2 and 2x1 are equally close to 5 : 4; half of two tiles has 200704 pixels.
    assert grid(125, 100, min_tiles=2, max_tiles=2) == (1, 2)
    assert grid(1250, 1000, min_tiles=2, max_tiles=2) == (2, 1)


def test_equal_areas_never_tie():
    """Two grids of equal area could both be closest only half way between their ratios, where a third is closer."""
    for max_tiles in range(1, 41):
        ratios = {Fraction(columns, rows) for columns, rows in allowed_grids(1, max_tiles)}
        by_area = defaultdict(list)
        for columns, rows in allowed_grids(1, max_tiles):
            by_area[columns * rows].append(Fraction(columns, rows))
        for candidates in by_area.values():
            # Neighbours suffice: between two that are further apart lies a third, which is closer to their middle.
            for narrow, wide in zip(candidates, candidates[1:], strict=False):
                middle = (narrow + wide) / 2
                # The margin is far beyond rounding errors, so floats cannot make a tie either.
                assert min(abs(middle - ratio) for ratio in ratios) < (wide - narrow) / 2 - Fraction(1, 1000)


@pytest.mark.parametrize("max_tiles", [12, 40])
def test_official_grid_table(goldens, max_tiles):
    numpy = pytest.importorskip("numpy")
    table = numpy.load(goldens / "preprocess" / "grid_table.npz")
    sizes = table["sizes"].tolist()
    ours = [[grid(width, height, max_tiles=max_tiles) for height in sizes] for width in sizes]
    assert ours == [[tuple(pair) for pair in row] for row in table[f"grid_max{max_tiles}"].tolist()]


def test_plan():
    plan = plan_tiles(800, 1300, tile_size=100)
    assert plan == TilePlan(columns=2, rows=3, tile_size=100, has_thumbnail=True)
    assert plan.num_tiles == 7
    assert plan.canvas_size == (200, 300)
    assert plan.boxes == (
        (0, 0, 100, 100),
        (100, 0, 200, 100),
        (0, 100, 100, 200),
        (100, 100, 200, 200),
        (0, 200, 100, 300),
        (100, 200, 200, 300),
    )


def test_thumbnail_only_if_wanted_and_several_tiles():
    assert plan_tiles(896, 448).num_tiles == 3
    assert plan_tiles(896, 448, use_thumbnail=False).num_tiles == 2
    assert plan_tiles(448, 448).num_tiles == 1
    assert not plan_tiles(448, 448).has_thumbnail


def counts(sizes, total, max_tiles=12, **kwargs):
    plans = plan_together(sizes, [max_tiles] * len(sizes), total_max_tiles=total, tile_size=10, **kwargs)
    return [plan.num_tiles for plan in plans]


def test_a_total_is_shared_by_one_limit():
    wide, small = (60, 10), (10, 10)
    assert counts([wide, wide], None) == counts([wide, wide], 14) == [7, 7]
    assert counts([wide, wide], 13) == [6, 6]
    assert counts([wide, wide], 12) == [6, 6]
    assert counts([wide, small, wide], 13) == [6, 1, 6]
    assert counts([small, wide, wide], 13) == [1, 6, 6]
    assert counts([wide, wide], 2) == counts([wide, wide], 5) == [1, 1]  # two tiles have a thumbnail
    assert counts([wide] * 2, 5, use_thumbnail=False) == [2, 2]
    assert counts([wide] * 2, 2, min_tiles=4) == [1, 1]
    assert counts([], 3) == []
    assert counts([wide], 10**9, max_tiles=10) == [7]


def test_every_total_is_kept_and_the_next_limit_would_break_it():
    sizes = [(60, 10), (33, 20), (10, 10), (20, 47)]
    unlimited = [counts(sizes, None, limit) for limit in range(1, 13)]
    for total in range(4, 40):
        found = counts(sizes, total)
        fitting = [plan for plan in unlimited if sum(plan) <= total]
        assert found == fitting[-1]


def test_pictures_keep_their_own_limits():
    plans = plan_together([(60, 10)] * 3, [1, 3, 12], total_max_tiles=10, tile_size=10)
    assert [plan.num_tiles for plan in plans] == [1, 4, 5]


def test_tokens_per_tile():
    assert tokens_per_tile(448, 448, patch_size=14, downsample_factor=2) == 256
    assert tokens_per_tile(448, 448, patch_size=14, downsample_factor=1) == 1024
    assert tokens_per_tile(56, 112, patch_size=14, downsample_factor=2) == 8
    assert tokens_per_tile(48, 16, patch_size=8, downsample_factor=2) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_tiles(0, 5), r"picture is 0 x 5 pixels \(width x height\), expected at least 1 x 1: leave"),
        (lambda: plan_tiles(5, -1), "picture is 5 x -1 pixels"),
        (lambda: plan_tiles(5, 5, tile_size=0), "tile_size is 0, expected a positive number of pixels such as 448"),
        (lambda: plan_tiles(5, 5, min_tiles=0), "min_tiles is 0, expected at least 1: give min_tiles=1"),
        (lambda: plan_tiles(5, 5, max_tiles=0), "max_tiles is 0, expected at least min_tiles, which is 1: raise"),
        (
            lambda: nearby_grids(1.0, 5, 4),
            "max_tiles is 4, expected at least min_tiles, which is 5: raise max_tiles or",
        ),
        (
            lambda: plan_together([(5, 5)] * 3, [12] * 3, total_max_tiles=2),
            "total_max_tiles is 2 for 3 pictures of one prompt, .* raise total_max_tiles or give fewer",
        ),
        (lambda: plan_together([(5, 5)], [0]), "max_tiles is 0, expected at least min_tiles, which is 1"),
        (lambda: tokens_per_tile(448, 448, 14, 0), "downsample_factor 0, expected all of them to be at least 1"),
        (
            lambda: tokens_per_tile(448, 434, 14, 2),
            r"448 x 434 pixels \(height x width\) does not divide into tokens of 28 x 28 pixels .* multiples of 28",
        ),
        (lambda: tokens_per_tile(450, 448, 14, 2), "450 x 448 pixels"),
        (lambda: tokens_per_tile(42, 56, 14, 2), "42 x 56 pixels"),  # 3 patches do not pair
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_needs_only_the_standard_library():
    source = ast.parse(Path(inspect.getsourcefile(TilePlan)).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
    assert modules == {"collections.abc", "dataclasses", "numbers", "operator", "typing"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(source))
