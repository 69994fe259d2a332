"""Pictures as the language model sees them: their image features, and how many tiles each picture has."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Pictures encoded once, to be used many times; `InternVLChatModel.encode_images` makes them.

    They go wherever `pixel_values` go. Two of them are equal only if they are the same object.

    Attributes:
        features: Image features `(tiles, tile_tokens, hidden)`, all tiles in order.
        num_tiles: Tiles of each picture, thumbnail included.

    Raises:
        ValueError: If the pictures have no tiles, or not as many as there are features.
    """

    features: torch.Tensor
    num_tiles: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(self.num_tiles) != len(self.features) or min(self.num_tiles, default=0) < 1:
            raise ValueError(
                f"num_tiles {list(self.num_tiles)} counts {sum(self.num_tiles)} tiles, but there are features of "
                f"{len(self.features)}. Give the number of tiles of each picture, as the image processor returns them."
            )

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.features)

    @property
    def tile_tokens(self) -> int:
        """Image tokens of one tile."""
        return self.features.shape[1]

    def split(self) -> list["EncodedImages"]:
        """Return the pictures one by one; they share the memory of the features."""
        parts = self.features.split(self.num_tiles)
        return [EncodedImages(part, (count,)) for part, count in zip(parts, self.num_tiles, strict=True)]
