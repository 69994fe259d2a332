"""Where in an image an image token looks: prompt position → tile, row and column → pixels, and attention back.

The order is that in which the model reads: the tiles of the grid row by row, then the thumbnail; in each tile its
tokens row by row. Each image's tokens cover it once, and the thumbnail's cover it once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from .tiling_internvl import TilePlan, is_size


@dataclass(frozen=True)
class TokenPlace:
    """What one image token shows.

    Attributes:
        tile: Number of its tile among those of its image, from 0.
        is_thumbnail: Whether that tile is the thumbnail.
        row: Its row among the tokens of the tile, from 0 at the top.
        column: Its column there, from 0 at the left.
        box: The part of the original image (left, top, right, bottom) that it shows, in pixels.
    """

    tile: int
    is_thumbnail: bool
    row: int
    column: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageTokenMap:
    """The image tokens of one image in a prompt; `InternVLProcessor.map_image_tokens` makes it.

    Attributes:
        plan: How the image was cut into tiles.
        image_size: Size (width, height) of the upright original image in pixels.
        side: Tokens along each side of a tile: 16 for tiles of 448 pixels.
        positions: Where in the prompt its tokens are, in order.
        transposed: Whether tokens go column by column within a tile, as `ps_version` "v1" makes them.

    Raises:
        ValueError: If there are not as many positions as the plan has tokens.
    """

    plan: TilePlan
    image_size: tuple[int, int]
    side: int
    positions: tuple[int, ...]
    transposed: bool = False

    def __post_init__(self) -> None:
        expected = self.plan.num_tiles * self.side**2
        if len(self.positions) != expected:
            raise ValueError(
                f"There are {len(self.positions)} positions for an image of {self.plan.num_tiles} tiles with "
                f"{self.side} x {self.side} tokens, expected {expected}: plan it with the settings of the prompt."
            )

    def place(self, position: int) -> TokenPlace:
        """Say what the token at a position of the prompt shows.

        Args:
            position: Index in the prompt.

        Returns:
            Its tile, row, column and pixels.

        Raises:
            ValueError: If no token of this image is there.
        """
        if position not in self.positions:
            raise ValueError(
                f"Position {position} is no token of this image, which has {len(self.positions)} of them from "
                f"{self.positions[0]} to {self.positions[-1]}."
            )
        tile, token = divmod(self.positions.index(position), self.side**2)
        row, column = divmod(token, self.side)
        if self.transposed:
            row, column = column, row
        is_thumbnail = tile == self.plan.columns * self.plan.rows
        grid_columns, grid_rows = (1, 1) if is_thumbnail else (self.plan.columns, self.plan.rows)
        tile_row, tile_column = (0, 0) if is_thumbnail else divmod(tile, grid_columns)
        x, y = tile_column * self.side + column, tile_row * self.side + row
        columns, rows = grid_columns * self.side, grid_rows * self.side  # tokens that cover the image
        width, height = self.image_size
        box = (x * width / columns, y * height / rows, (x + 1) * width / columns, (y + 1) * height / rows)
        return TokenPlace(tile, is_thumbnail, row, column, box)

    def tile_maps(self, weights: torch.Tensor) -> torch.Tensor:
        """Pick this image's weights out of those of a prompt, and lay them out tile by tile.

        Args:
            weights: One weight for each token of the prompt `(..., seq)`, such as a row of attention; what was
                generated may follow.

        Returns:
            Weights `(..., tiles, side, side)`, the thumbnail last.

        Raises:
            ValueError: If there are fewer weights than the prompt has tokens.
        """
        weights = torch.as_tensor(weights)
        if weights.ndim == 0 or weights.shape[-1] <= self.positions[-1]:
            raise ValueError(
                f"The weights are {tuple(weights.shape)}, expected (..., seq) with one for each token of the prompt, "
                f"which has this image's last one at position {self.positions[-1]}."
            )
        weights = weights[..., list(self.positions)]  # (..., tiles * side²)
        maps = weights.reshape(*weights.shape[:-1], self.plan.num_tiles, self.side, self.side)
        return maps.transpose(-1, -2) if self.transposed else maps  # (…, tiles, side, side)

    def heat_map(self, weights: torch.Tensor) -> torch.Tensor:
        """Fold the weights of a prompt back to the image.

        A token of the thumbnail covers as many cells as the grid has tiles, and its weight is divided among them. The
        sum of the map is the sum of the weights of all tokens of the image.

        Args:
            weights: See `tile_maps`.

        Returns:
            Map `(..., rows * side, columns * side)`; stretched to the image's size it lies on what it is about.
        """
        tiles = self.tile_maps(weights)
        columns, rows = self.plan.columns, self.plan.rows
        grid = tiles[..., : columns * rows, :, :].unflatten(-3, (rows, columns))  # (..., rows, columns, side, side)
        heat = grid.transpose(-3, -2).flatten(-4, -3).flatten(-2)  # (..., rows * side, columns * side)
        if self.plan.has_thumbnail:
            thumbnail = tiles[..., -1, :, :].repeat_interleave(rows, dim=-2).repeat_interleave(columns, dim=-1)
            heat = heat + thumbnail / (columns * rows)
        return heat


class TokenMapMixin:
    """Token maps for a processor with `image_processor`, `image_token_id`, `patch_size` and `downsample_factor`."""

    def map_image_tokens(
        self, images: Any, input_ids: Sequence[int] | torch.Tensor, ps_version: str = "v2", **kwargs: Any
    ) -> list[ImageTokenMap]:
        """Find the tokens of each image in a prompt.

        Args:
            images: The prompt's images in order, or their sizes (width, height) in pixels; one, or a list.
            input_ids: The prompt `(seq,)` or `(1, seq)`.
            ps_version: The model's `config.ps_version`.
            **kwargs: The settings of the image processor with which the prompt was made, such as `max_tiles`.

        Returns:
            One map for each image.

        Raises:
            ValueError: If the images of the prompt, one by one, have not as many image tokens as the given ones; if
                it is not one prompt, images are padded to a square, or `ps_version` is unknown.
        """
        if ps_version not in ("v1", "v2"):
            raise ValueError(f"ps_version is {ps_version!r}, expected 'v1' or 'v2', as the model's config says.")
        if kwargs.get("pad2square", self.image_processor.pad2square):
            raise ValueError("pad2square is set: tokens then show padding too. Pad the image yourself and map that.")
        try:
            input_ids = torch.as_tensor(input_ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"input_ids is of type {type(input_ids).__name__}, expected the ids of one prompt (seq,)."
            ) from error
        if input_ids.ndim == 2 and len(input_ids) == 1:
            input_ids = input_ids[0]
        if input_ids.ndim != 1:
            raise ValueError(f"input_ids is {tuple(input_ids.shape)}, expected one prompt (seq,): map row by row.")
        images = [images] if is_size(images) or not isinstance(images, (list, tuple)) else images
        sizes = [self.image_processor.upright_size(image, **kwargs) for image in images]
        plans = self.image_processor.plan_all(sizes, **kwargs)
        sides = [plan.tile_size // (self.patch_size * self.downsample_factor) for plan in plans]
        counts = [plan.num_tiles * side**2 for plan, side in zip(plans, sides, strict=True)]
        is_image = input_ids == self.image_token_id
        found = [len(list(run)) for in_image, run in groupby(is_image.tolist()) if in_image]
        if found != counts:
            raise ValueError(
                f"The images of the prompt have {found} image tokens, but the given ones {counts}: give all its "
                "images in order, and the settings with which it was made."
            )
        positions = is_image.nonzero().flatten().tolist()
        starts = [sum(counts[:index]) for index in range(len(counts))]
        return [
            ImageTokenMap(plan, size, side, tuple(positions[start : start + count]), ps_version == "v1")
            for plan, size, side, start, count in zip(plans, sizes, sides, starts, counts, strict=True)
        ]
