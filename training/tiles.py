"""Cuts a scene into tiles, and says for every patch and every image token of a tile what it shows.

The pixels equal those of the package's image processor before normalisation (bicubic resize to the grid, row by row,
thumbnail last); a test holds the two together. Choosing the grid is the caller's business.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.pictures import COLOURS, KINDS, SHAPES, Box, Scene
from training.words import CHINESE, LETTERS


DIGITS = "0123456789"
CHARACTERS = f"{DIGITS}{LETTERS.upper()}{LETTERS}.: {CHINESE}"
# Characters kept per image token (28 pixels hold three digits of the smallest size).
SLOTS = 4
# Places in a text that are told apart; later characters of a longer text are not numbered.
PLACES = 8
# Boxes are told on a grid of so many steps per side: 7 pixels of a 224-pixel tile.
BOX_STEPS = 32
# Label 0 always means "nothing here".
CHARACTER_IDS = {char: index + 1 for index, char in enumerate(CHARACTERS)}
KIND_IDS = {kind: index + 1 for index, kind in enumerate(KINDS)}
COLOUR_IDS = {colour: index + 1 for index, colour in enumerate(COLOURS)}


@dataclass
class TileLabels:
    """What the tiles of a picture show; `patches` per side of a tile, `cells` = image tokens per side.

    Args:
        half_chars: Character at each left and right half of a patch (tiles, patches, 2 * patches).
        patch_kinds: Kind of thing at the centre of each patch (tiles, patches, patches).
        patch_colours: Its colour (tiles, patches, patches).
        chars: Characters whose centre lies in a cell, in reading order (tiles, cells * cells, SLOTS).
        spelled: The same characters, each at its place in its text instead of its cell (tiles, cells * cells, PLACES).
        firsts: 1 + the place in its text of the first character in a cell, at most PLACES + 1 (tiles, cells * cells).
        kinds: Kind of thing in a cell (tiles, cells * cells).
        colours: Its colour (tiles, cells * cells).
        centres: 1 where the centre of a shape lies in a cell (tiles, cells * cells).
        edges: 1 + the step of `BOX_STEPS` of the left, top, right and bottom edge of the thing whose centre lies in a
            cell, within its tile (tiles, cells * cells, 4).
    """

    half_chars: np.ndarray
    patch_kinds: np.ndarray
    patch_colours: np.ndarray
    chars: np.ndarray
    spelled: np.ndarray
    firsts: np.ndarray
    kinds: np.ndarray
    colours: np.ndarray
    centres: np.ndarray
    edges: np.ndarray

    @classmethod
    def stack(cls, labels: list["TileLabels"]) -> "TileLabels":
        """Join the labels of several pictures along the tile axis."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*(vars(one).values() for one in labels), strict=True)))


@dataclass(frozen=True)
class Geometry:
    """Sizes that labels depend on, in pixels: the side of a tile, of a patch and of the cell of one image token."""

    tile_size: int
    patch_size: int
    cell_size: int


def box_steps(box: Box, size: tuple[float, float]) -> list[int]:
    """Round a box to the grid of `BOX_STEPS` per side: left, top, right, bottom in 0..BOX_STEPS."""
    return [max(0, min(BOX_STEPS, round(BOX_STEPS * edge / size[index % 2]))) for index, edge in enumerate(box)]


def cut_pixels(scene: Scene, grid: tuple[int, int], tile_size: int) -> np.ndarray:
    """Cut the tiles of one grid.

    Args:
        scene: The picture.
        grid: (columns, rows).
        tile_size: Side of a tile in pixels.

    Returns:
        uint8 (columns * rows, tile_size, tile_size, 3), row by row.
    """
    columns, rows = grid
    image = scene.image.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC)
    return _split(np.asarray(image), grid)


def label_tiles(scene: Scene, grid: tuple[int, int], geometry: Geometry) -> TileLabels:
    """Label the tiles that `cut_pixels` cuts.

    Args:
        scene: The picture.
        grid: (columns, rows).
        geometry: Sizes of tile, patch and cell.

    Returns:
        Labels of columns * rows tiles, row by row.
    """
    columns, rows = grid
    width, height = columns * geometry.tile_size, rows * geometry.tile_size
    patch, cell = geometry.patch_size, geometry.cell_size
    owner = np.asarray(scene.owner.resize((width, height), Image.Resampling.NEAREST))
    owner = owner[patch // 2 :: patch, patch // 2 :: patch]  # (rows * patches, columns * patches)
    kind_of = np.array([0] + [KIND_IDS[thing.kind] for thing in scene.things])
    colour_of = np.array([0] + [COLOUR_IDS[thing.colour] for thing in scene.things])
    # Where one cell holds patches of two things, the one drawn last wins.
    per_cell = cell // patch
    cell_owner = owner.reshape(height // cell, per_cell, width // cell, per_cell).max(axis=(1, 3))
    half_chars, chars, spelled, firsts = _label_characters(scene, (width, height), geometry)
    centres, edges = _label_places(scene, grid, geometry)
    maps = {
        "half_chars": half_chars,
        "patch_kinds": kind_of[owner],
        "patch_colours": colour_of[owner],
        "chars": chars,
        "spelled": spelled,
        "firsts": firsts,
        "kinds": kind_of[cell_owner],
        "colours": colour_of[cell_owner],
        "centres": centres,
        "edges": edges,
    }
    tiles = {name: _split(array, grid) for name, array in maps.items()}
    for name in ("chars", "spelled", "firsts", "kinds", "colours", "centres", "edges"):
        tiles[name] = tiles[name].reshape(columns * rows, -1, *tiles[name].shape[3:])
    return TileLabels(**tiles)


def _split(array: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cut (rows * h, columns * w, ...) into (rows * columns, h, w, ...)."""
    columns, rows = grid
    height, width = array.shape[0] // rows, array.shape[1] // columns
    parts = array.reshape(rows, height, columns, width, *array.shape[2:])
    return parts.swapaxes(1, 2).reshape(rows * columns, height, width, *array.shape[2:])


def _scale(scene: Scene, size: tuple[int, int]) -> tuple[float, float]:
    return size[0] / scene.image.width, size[1] / scene.image.height


def _label_characters(scene: Scene, size: tuple[int, int], geometry: Geometry) -> tuple[np.ndarray, ...]:
    scale_x, scale_y = _scale(scene, size)
    step_x, step_y, cell = geometry.patch_size / 2, geometry.patch_size, geometry.cell_size
    half_chars = np.zeros((round(size[1] / step_y), round(size[0] / step_x)), dtype=np.int64)
    chars = np.zeros((size[1] // cell, size[0] // cell, SLOTS), dtype=np.int64)
    spelled = np.zeros((*chars.shape[:2], PLACES), dtype=np.int64)
    firsts = np.zeros(chars.shape[:2], dtype=np.int64)
    for place, glyph in ((place, glyph) for thing in scene.things for place, glyph in enumerate(thing.glyphs)):
        left, right = glyph.box[0] * scale_x, glyph.box[2] * scale_x
        top, bottom = glyph.box[1] * scale_y, glyph.box[3] * scale_y
        label = CHARACTER_IDS[glyph.char]
        columns = slice(max(0, round(left / step_x)), max(0, round(right / step_x)))
        half_chars[max(0, round(top / step_y)) : max(0, round(bottom / step_y)), columns] = label
        row = min(int((top + bottom) / 2 / cell), chars.shape[0] - 1)
        column = min(int((left + right) / 2 / cell), chars.shape[1] - 1)
        free = np.flatnonzero(chars[row, column] == 0)
        if free.size:
            chars[row, column, free[0]] = label
        if free.size == SLOTS:
            firsts[row, column] = 1 + min(place, PLACES)
        if place < PLACES:
            spelled[row, column, place] = label
    return half_chars, chars, spelled, firsts


def _label_places(scene: Scene, grid: tuple[int, int], geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Mark the cell of every thing's centre: whether it is a shape's, and where the edges of the thing are."""
    columns, rows = grid
    tile, cell = geometry.tile_size, geometry.cell_size
    scale_x, scale_y = _scale(scene, (columns * tile, rows * tile))
    centres = np.zeros((rows * tile // cell, columns * tile // cell), dtype=np.int64)
    edges = np.zeros((*centres.shape, 4), dtype=np.int64)
    for thing in scene.things:
        box = [edge * (scale_y if index % 2 else scale_x) for index, edge in enumerate(thing.box)]
        x = min(max((box[0] + box[2]) / 2, 0), columns * tile - 1)
        y = min(max((box[1] + box[3]) / 2, 0), rows * tile - 1)
        place = int(y / cell), int(x / cell)
        centres[place] |= thing.kind in SHAPES
        corner = [x // tile * tile, y // tile * tile] * 2
        within = tuple(edge - start for edge, start in zip(box, corner, strict=True))
        edges[place] = [1 + step for step in box_steps(within, (tile, tile))]
    return centres, edges
