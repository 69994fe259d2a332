"""Pictures as the language model sees them: image features, tiles of each picture, places for them in the text."""

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


def check_places(num_places: int, num_features: int, image_token_id: int) -> None:
    """Check that a text has as many places for image tokens as its pictures have image features.

    Args:
        num_places: How often `image_token_id` stands in the text.
        num_features: Image features of all tiles that have places.
        image_token_id: The token that marks a place.

    Raises:
        ValueError: If the two numbers differ.
    """
    if num_places != num_features:
        raise ValueError(
            # The first words are Transformers' own; TRL knows by them that its max_length was too short.
            "Image features and image tokens do not match. "
            f"The text has places for {num_places} image tokens (id {image_token_id}), but the pictures have "
            f"{num_features}. Build both with the processor or chat(), pass pixel_values with the text, do not cut a "
            "prompt inside its image tokens, and check config.image_token_id."
        )
