"""The tile plan: which grid of square tiles a picture is cut into, and how many image tokens that makes.

Arithmetic on sizes only: no pixels, no tensors, nothing beyond the standard library. Resizing, cutting and normalising
are the image processor's. The rule is "dynamic high resolution" of InternVL 1.5, arXiv 2404.16821, section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import Any


@dataclass(frozen=True)
class TilePlan:
    """How one picture becomes tiles: resize it to the canvas, cut the canvas along the grid, row by row.

    Attributes:
        columns: Tiles side by side, at least 1.
        rows: Tiles on top of each other, at least 1.
        tile_size: Side of the square tiles in pixels.
        has_thumbnail: Whether the whole picture, squeezed into one more tile, follows the tiles of the grid.
    """

    columns: int
    rows: int
    tile_size: int
    has_thumbnail: bool

    @property
    def num_tiles(self) -> int:
        """Number of tiles the picture becomes, the thumbnail included."""
        return self.columns * self.rows + self.has_thumbnail

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Size (width, height) in pixels to which the picture is resized before it is cut."""
        return self.columns * self.tile_size, self.rows * self.tile_size

    @property
    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Boxes (left, top, right, bottom) of the grid's tiles on the canvas in pixels, row by row, no thumbnail."""
        side = self.tile_size
        return tuple(
            (column * side, row * side, (column + 1) * side, (row + 1) * side)
            for row in range(self.rows)
            for column in range(self.columns)
        )


def is_size(value: Any) -> bool:
    """Whether a value is meant as the size of a picture: a tuple or list of nothing but numbers."""
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(side, Real) for side in value)


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    """Return the size (width, height) of a picture in pixels as two ints.

    Raises:
        ValueError: If it is anything but two whole numbers of at least 1.
    """
    try:
        width, height = (index(None if isinstance(side, bool) else side) for side in size)
    except (TypeError, ValueError):
        width = height = 0
    if min(width, height) < 1:
        raise ValueError(
            f"The image size is {size!r}, expected (width, height) in pixels: two whole numbers of at least 1."
        )
    return width, height


def nearby_grids(ratio: float, min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """List the grids of `min_tiles` to `max_tiles` tiles among which the one closest to an aspect ratio is.

    All grids of 1 to 12 tiles (training) are 35, of 1 to 40 (the largest number tried at inference) 158, of 1 to a
    million 14 million. None but these can be closest: for each number of tiles along the shorter side of the image,
    those along the longer side that are closest to the ratio, or as close as the limits allow. Once the limits allow
    too few of them, more along the shorter side only lead away from the ratio. So the work grows like the square root
    of `max_tiles`, and nothing is kept.

    Args:
        ratio: Width divided by height of the image.
        min_tiles: Smallest number of tiles, thumbnail not counted; at least 1.
        max_tiles: Largest number of tiles, thumbnail not counted; at least `min_tiles`.

    Returns:
        Grids (columns, rows) in the order in which `plan_tiles` tries them: by number of tiles, then by columns.

    Raises:
        ValueError: If `min_tiles` is not positive or `max_tiles` is below it.
    """
    if min_tiles < 1:
        raise ValueError(f"min_tiles is {min_tiles}, expected at least 1: give min_tiles=1 to allow a single tile.")
    if max_tiles < min_tiles:
        raise ValueError(
            f"max_tiles is {max_tiles}, expected at least min_tiles, which is {min_tiles}: "
            "raise max_tiles or lower min_tiles."
        )
    is_wide = ratio >= 1
    long_per_short = ratio if is_wide else 1 / ratio
    grids = set()
    for short in range(1, max_tiles + 1):
        fewest, most = -(-min_tiles // short), max_tiles // short
        if fewest > most:
            continue
        wanted = int(min(long_per_short * short, most))
        # One more on either side than the two neighbours, for the sake of rounding.
        for long in range(wanted - 1, wanted + 3):
            long = min(max(long, fewest), most)
            grids.add((long, short) if is_wide else (short, long))
        if most < long_per_short * short:
            break
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0]))


def plan_tiles(
    width: int,
    height: int,
    *,
    min_tiles: int = 1,
    max_tiles: int = 12,
    use_thumbnail: bool = True,
    tile_size: int = 448,
) -> TilePlan:
    """Choose the grid for a picture: the one whose aspect ratio is closest to the picture's.

    Ties are common, for 1x1, 2x2 and 3x3 have one ratio. The rule, in the order of `nearby_grids`: the first grid of
    the smallest difference is taken, and a later one of the same difference replaces it only if the picture has more
    than half as many pixels as that grid's canvas, `2 * width * height > tile_size**2 * columns * rows`. So no picture
    is blown up to twice its area or more to break a tie: one of 448x448 pixels stays one tile.

    A thumbnail is added if asked for and if the grid has more than one tile.

    Two grids of equal area can both be closest only if `min_tiles` excludes the grids between them (1x2 and 2x1 at
    width : height = 5 : 4, if 1x1 is not allowed). Then the wider one, being later, is taken if the picture is large
    enough. From 1 tile up to any maximum of 40 or less no picture has such a tie, whatever its size.

    Args:
        width: Width of the picture in pixels, at least 1.
        height: Height of the picture in pixels, at least 1.
        min_tiles: Smallest number of tiles in the grid, at least 1.
        max_tiles: Largest number of tiles in the grid, at least `min_tiles`; the thumbnail comes on top of it.
        use_thumbnail: Whether a picture of several tiles gets a thumbnail.
        tile_size: Side of a tile in pixels.

    Returns:
        The plan.

    Raises:
        ValueError: If a size is not positive or the limits exclude every grid.
    """
    if width < 1 or height < 1:
        raise ValueError(
            f"The picture is {width} x {height} pixels (width x height), expected at least 1 x 1: "
            "leave empty pictures out."
        )
    if tile_size < 1:
        raise ValueError(f"tile_size is {tile_size}, expected a positive number of pixels such as 448.")

    # The difference of ratios is rounded to a float on purpose. Where a picture lies exactly between two ratios, as
    # 7 : 6 does between 1 : 1 and 4 : 3, rounding decides, and it decided so when the weights were trained.
    ratio = width / height
    best_grid, best_difference = (1, 1), float("inf")
    for columns, rows in nearby_grids(ratio, min_tiles, max_tiles):
        difference = abs(ratio - columns / rows)
        is_large_enough = 2 * width * height > tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and is_large_enough):
            best_grid, best_difference = (columns, rows), difference
    return TilePlan(*best_grid, tile_size=tile_size, has_thumbnail=use_thumbnail and best_grid != (1, 1))


def plan_together(
    sizes: Sequence[tuple[int, int]],
    max_tiles: Sequence[int],
    *,
    total_max_tiles: int | None = None,
    min_tiles: int = 1,
    use_thumbnail: bool = True,
    tile_size: int = 448,
) -> list[TilePlan]:
    """Plan the pictures of one prompt, each within its own limit and all of them within a total.

    The total is shared out by one rule: a limit that is the same for all pictures, the largest with which their tiles,
    thumbnails counted, fit. So pictures that are alike are treated alike, small ones leave room for large ones, and
    the order does not matter. What is left over when the next larger limit would be too much stays unused.

    Args:
        sizes: Size (width, height) of each picture in pixels.
        max_tiles: Largest grid of each picture, its thumbnail not counted.
        total_max_tiles: Most tiles of all pictures, thumbnails counted; None for no such limit.
        min_tiles: Smallest grid; a smaller limit goes before it.
        use_thumbnail: Whether a picture of several tiles gets a thumbnail.
        tile_size: Side of a tile in pixels.

    Returns:
        The plan of each picture.

    Raises:
        ValueError: If the total does not hold one tile for each picture, or `plan_tiles` refuses a picture.
    """
    if total_max_tiles is not None and total_max_tiles < len(sizes):
        raise ValueError(
            f"total_max_tiles is {total_max_tiles} for {len(sizes)} pictures of one prompt, and each takes at least "
            "one tile: raise total_max_tiles or give fewer pictures or frames."
        )
    common_limit = max(max_tiles, default=1)
    if total_max_tiles is not None:
        common_limit = min(common_limit, total_max_tiles)
    while True:
        limits = [min(limit, common_limit) for limit in max_tiles]
        plans = [
            plan_tiles(
                width,
                height,
                min_tiles=min(min_tiles, max(limit, 1)),
                max_tiles=limit,
                use_thumbnail=use_thumbnail,
                tile_size=tile_size,
            )
            for (width, height), limit in zip(sizes, limits, strict=True)
        ]
        if total_max_tiles is None or sum(plan.num_tiles for plan in plans) <= total_max_tiles:
            return plans
        # Every limit down to the largest grid gives the same plans again. At 1 every image has one tile.
        common_limit = max(plan.columns * plan.rows for plan in plans) - 1


def tokens_per_tile(height: int, width: int, patch_size: int, downsample_factor: int) -> int:
    """Count the image tokens that the language model sees for one tile.

    The ViT makes one embedding per patch; pixel shuffle then joins each square of `downsample_factor` by
    `downsample_factor` embeddings into one image token. 448 x 448 pixels, patches of 14 and a factor of 2 give 256.

    Args:
        height: Height of the tile in pixels.
        width: Width of the tile in pixels.
        patch_size: Side of a ViT patch in pixels.
        downsample_factor: How many embeddings along each side become one token (1 / `downsample_ratio`).

    Returns:
        Number of image tokens of the tile.

    Raises:
        ValueError: If a number is not positive, or if a side is not a multiple of `patch_size * downsample_factor`.
    """
    if min(height, width, patch_size, downsample_factor) < 1:
        raise ValueError(
            f"Got height {height}, width {width}, patch_size {patch_size} and downsample_factor {downsample_factor}, "
            "expected all of them to be at least 1: correct the sizes in the config."
        )
    token_size = patch_size * downsample_factor  # pixels along the side of one token
    if height % token_size or width % token_size:
        raise ValueError(
            f"A tile of {height} x {width} pixels (height x width) does not divide into tokens of {token_size} x "
            f"{token_size} pixels (patch_size {patch_size} x downsample_factor {downsample_factor}): "
            f"use sides that are multiples of {token_size}."
        )
    return (height // token_size) * (width // token_size)
