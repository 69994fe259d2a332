"""Images as the language model sees them: image features, the tiles of each image, their tokens in a prompt.

Shape legend: `tiles`, `tile_tokens` image tokens of a tile, `batch`, `seq`, `hidden` the language model's width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images encoded once, to be used many times; `InternVLChatModel.encode_images` makes them.

    They go wherever `pixel_values` go. Two of them are equal only if they are the same object.

    Attributes:
        features: Image features `(tiles, tile_tokens, hidden)`, all tiles in order.
        num_tiles: Tiles of each image, thumbnail included.

    Raises:
        ValueError: If an image has no tiles, or not as many as there are features.
    """

    features: torch.Tensor
    num_tiles: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(self.num_tiles) != len(self.features) or min(self.num_tiles, default=0) < 1:
            raise ValueError(
                f"num_tiles {list(self.num_tiles)} counts {sum(self.num_tiles)} tiles, but there are features of "
                f"{len(self.features)}. Give the number of tiles of each image, as the image processor returns them."
            )

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.features)

    @property
    def tile_tokens(self) -> int:
        """Image tokens of one tile."""
        return self.features.shape[1]

    def split(self) -> list["EncodedImages"]:
        """Return the images one by one; they share the memory of the features."""
        parts = self.features.split(self.num_tiles)
        return [EncodedImages(part, (count,)) for part, count in zip(parts, self.num_tiles, strict=True)]


class PromptFeatures:
    """Ready embeddings for some tokens of a prompt, such as image features for its image tokens.

    They ride beside `input_ids` through every step of a generation. Each step looks up the tokens that it reads by
    their slots, so it does not matter where the first steps begin and end: in a cache that holds a part of the prompt,
    in the middle of it (chunked prefill), or behind it (guesses that are checked together with the prompt).

    A plain class on purpose: tensors and dataclasses among the inputs of `generate` are expanded, moved and rewritten
    by Transformers.

    Args:
        features: The embeddings `(features, hidden)`; None if no token has one.
        index: Which row of `features` each token of the prompt takes, -1 for its word embedding, `(batch, prompt)`.
        model: The model whose features these are.
        pixel_values: The tiles that the features were made from, for an assistant with a vision encoder of its own.
        image_flags: See `InternVLChatModel.embed_inputs`.
        positions: Fractional positions of the prompt's tokens `(batch, prompt)`; None where they count by one.
    """

    def __init__(
        self,
        features: torch.Tensor | None,
        index: torch.LongTensor,
        model: nn.Module,
        pixel_values: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> None:
        self.features, self.index, self.model = features, index, model
        self.positions = positions
        self.pixel_values, self.image_flags = pixel_values, image_flags
        # What assistants made of the same images, by their id: they are asked many times in one generation.
        self.of_assistants: dict[int, torch.Tensor | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "PromptFeatures":
        """Return itself: nothing in it changes, and copies would double the memory."""
        return self

    def embed(self, inputs_embeds: torch.Tensor, first_slot: int | torch.Tensor) -> torch.Tensor:
        """Put the features in the place of word embeddings, in one step of a generation.

        Args:
            inputs_embeds: Word embeddings of the tokens that the step reads, `(batch, seq, hidden)`. A prompt may have
                several rows in it, one after the other, as beams and several sequences have.
            first_slot: Where the first of them stands in the whole sequence; a tensor keeps the device from waiting.

        Returns:
            Embeddings `(batch, seq, hidden)`.
        """
        batch, seq, _ = inputs_embeds.shape
        prompt = self.index.shape[1]
        if self.features is None or (isinstance(first_slot, int) and first_slot >= prompt):
            return inputs_embeds
        slots = first_slot + torch.arange(seq, device=self.index.device)
        index = self.index[:, slots.clamp(max=prompt - 1)].masked_fill(slots >= prompt, -1)  # (prompts, seq)
        index = index.repeat_interleave(batch // len(index), dim=0)  # (batch, seq)
        return insert_features(inputs_embeds, index, self.features)

    def positions_at(self, first_slot: int | torch.Tensor, batch: int, seq: int) -> torch.Tensor | None:
        """Return the positions of the tokens that a step reads; behind the prompt they count by one.

        Args:
            first_slot: See `embed`.
            batch: Rows of the step.
            seq: Tokens of each row.

        Returns:
            Positions `(batch, seq)`; None where the language model counts by itself.
        """
        if self.positions is None:
            return None
        last = self.positions.shape[1] - 1
        slots = first_slot + torch.arange(seq, device=self.positions.device)
        positions = self.positions[:, slots.clamp(max=last)]  # (prompts, seq)
        positions = torch.where(slots > last, positions.ceil() + (slots - last), positions)
        return positions.repeat_interleave(batch // len(positions), dim=0)  # (batch, seq)

    def embed_found(self, inputs_embeds: torch.Tensor, is_image: torch.Tensor) -> torch.Tensor:
        """Put the features into embeddings whose slots are not the prompt's, such as those of prompt tuning.

        Args:
            inputs_embeds: Embeddings of the whole prompt, perhaps with others before it, `(batch, seq, hidden)`.
            is_image: Which of them are image tokens, `(batch, seq)`; each row's first ones are the prompt's.

        Returns:
            Embeddings `(batch, seq, hidden)`.

        Raises:
            ValueError: If a row has fewer image tokens than its prompt.
        """
        if self.features is None:
            return inputs_embeds
        # The rows of features that each row of the prompt takes, in order, -1 behind the last: (batch, image tokens)
        rows = [row[row >= 0] for row in self.index.repeat_interleave(len(inputs_embeds) // len(self.index), dim=0)]
        table = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        number = feature_number(is_image, dim=1)  # (batch, seq)
        if (number.max(dim=1).values + 1 < torch.tensor([len(row) for row in rows], device=number.device)).any():
            raise ValueError("inputs_embeds have fewer image tokens than the prompt; do not cut or mix embeddings.")
        table = nn.functional.pad(table, (0, max(is_image.shape[1] - table.shape[1], 0)), value=-1)
        index = table.gather(1, number.clamp(min=0)).masked_fill(~is_image, -1)  # (batch, seq)
        return insert_features(inputs_embeds, index, self.features)


def insert_features(inputs_embeds: torch.Tensor, index: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Replace some embeddings by features, which are looked up as words are in the embedding.

    Args:
        inputs_embeds: Embeddings `(batch, seq, hidden)`.
        index: Row of `features` for each token, -1 for none, `(batch, seq)`.
        features: Features `(features, hidden)`.

    Returns:
        Embeddings `(batch, seq, hidden)`; gradients reach both.
    """
    index = index.to(inputs_embeds.device)
    features = features.to(inputs_embeds)
    found = nn.functional.embedding(index.clamp(min=0), features)  # (batch, seq, hidden)
    return torch.where((index >= 0).unsqueeze(-1), found, inputs_embeds)


def feature_index(is_image: torch.Tensor) -> torch.LongTensor:
    """Number the image tokens of a batch in order, row by row.

    Args:
        is_image: Whether a token is an image token, `(batch, seq)`.

    Returns:
        The number of each image token from 0 on, -1 for all others, `(batch, seq)`.
    """
    return feature_number(is_image.flatten(), dim=0).view_as(is_image)


def feature_number(is_image: torch.Tensor, dim: int) -> torch.LongTensor:
    """Number image tokens along a dimension from 0 on, -1 for all other tokens; the shape stays."""
    return (is_image.cumsum(dim) - 1).masked_fill(~is_image, -1)


def check_image_tokens(num_tokens: int, num_features: int, image_token_id: int) -> None:
    """Check that a text has as many image tokens as its images have features.

    Args:
        num_tokens: How often `image_token_id` stands in the text.
        num_features: Image features of all tiles that are in the text.
        image_token_id: Id of the image token.

    Raises:
        ValueError: If the two numbers differ.
    """
    if num_tokens != num_features:
        raise ValueError(
            # The first words are Transformers' own; TRL knows by them that its max_length was too short.
            "Image features and image tokens do not match. "
            f"The text has {num_tokens} image tokens (id {image_token_id}), but the images have {num_features} "
            "features. Build both with the processor or chat(), pass pixel_values with the text, do not cut a "
            "prompt inside its image tokens, and check config.image_token_id."
        )
