"""Images as the language model sees them: image features, the tiles of each image, their tokens in a prompt.

Shape legend: `tiles`, `tile_tokens` image tokens of a tile, `batch`, `seq`, `hidden` the language model's width.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index as as_integer
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from .inputs_internvl import check_features


# What of a config decides image features, beside the weights: of the whole, and of its vision encoder.
FEATURE_SETTINGS = ("downsample_factor", "ps_version", "select_layer")
VISION_SETTINGS = ("hidden_act", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps", "norm_type")
VISION_SETTINGS += ("num_attention_heads", "num_channels", "num_hidden_layers", "patch_size", "qk_normalization")


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images encoded once, to be used many times; `InternVLChatModel.encode_images` makes them.

    They go wherever `pixel_values` of the same model go. Two of them are equal only if they are the same object.

    Attributes:
        features: Image features `(tiles, tile_tokens, hidden)`, all tiles in order.
        num_tiles: Tiles of each image, thumbnail included.
        fingerprint: Of the model that encoded them, see `fingerprint_of`; empty if it is not known.

    Raises:
        TypeError: If the features are no tensor of floating point, or the counts no whole numbers.
        ValueError: If the features hold NaN, an image has no tiles, or not as many as there are features.
    """

    features: torch.Tensor
    num_tiles: tuple[int, ...]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_features(self.features, name="features")
        if self.features.ndim != 3:
            raise ValueError(
                f"features has shape {tuple(self.features.shape)}; expected (tiles, tile_tokens, hidden)."
            )
        try:
            if any(isinstance(count, bool) for count in self.num_tiles):
                raise TypeError("True and False are no counts")
            object.__setattr__(self, "num_tiles", tuple(map(as_integer, self.num_tiles)))
        except TypeError as error:
            raise TypeError(
                f"num_tiles is {self.num_tiles!r}; expected a whole number for each image ({error})."
            ) from error
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
        counts = zip(parts, self.num_tiles, strict=True)
        return [replace(self, features=part, num_tiles=(count,)) for part, count in counts]


def fingerprint_of(config: PretrainedConfig, dtype: torch.dtype) -> str:
    """Return what tells image features of one model from those of another: its config and its weights' dtype."""
    settings = [str(getattr(config, name)) for name in FEATURE_SETTINGS]
    settings += [str(getattr(config.vision_config, name)) for name in VISION_SETTINGS]
    settings += [str(config.llm_config.hidden_size), str(dtype)]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def check_encoded(images: EncodedImages, fingerprint: str, hidden: int, tile_tokens: int) -> None:
    """Make sure that encoded images are this model's.

    Args:
        images: The images; their features were checked when they were made.
        fingerprint: The model's, see `fingerprint_of`.
        hidden: Width of its embeddings.
        tile_tokens: Image tokens of a tile of its configured size.

    Raises:
        ValueError: If they are another model's.
    """
    if images.features.shape[-1] != hidden:
        check_features(images.features, hidden, "The features of EncodedImages")
    if images.fingerprint and images.fingerprint != fingerprint:
        raise ValueError(
            f"EncodedImages come from another model (fingerprint {images.fingerprint}; expected {fingerprint}, of "
            "this model's config and dtype): encode the images with this model."
        )
    if not images.fingerprint and images.tile_tokens != tile_tokens:
        raise ValueError(
            f"EncodedImages have {images.tile_tokens} image tokens a tile and come from no known model; expected "
            f"{tile_tokens}: encode the images with this model."
        )


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
    return torch.where((index >= 0).unsqueeze(-1), found, inputs_embeds)  # (batch, seq, hidden)


def feature_index(is_image: torch.Tensor) -> torch.LongTensor:
    """Number the image tokens of a batch in order, row by row.

    Args:
        is_image: Whether a token is an image token, `(batch, seq)`.

    Returns:
        The number of each image token from 0 on, -1 for all others, `(batch, seq)`.
    """
    return feature_number(is_image.flatten(), dim=0).view_as(is_image)  # (batch, seq)


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


# What callers give as images: tiles `(tiles, 3, height, width)`, or what `encode_images` made of them.
ImageInput = torch.Tensor | EncodedImages


def count_tiles(pixel_values: ImageInput | None, num_patches_list: Sequence[int] | None = None) -> list[int]:
    """Check the images of one conversation, and count the tiles of each.

    Args:
        pixel_values: The images.
        num_patches_list: Tiles of each image; None means those that were encoded together, else that all tiles are one
            image.

    Returns:
        The tiles of each image, empty without images.

    Raises:
        ValueError: If there are no such tiles, or not as many as counted.
    """
    given = None if num_patches_list is None else _integers(num_patches_list)
    if pixel_values is None:
        if given and sum(given):
            raise ValueError(f"num_patches_list is {given}, but pixel_values is None; give the tiles.")
        return []
    if isinstance(pixel_values, EncodedImages):
        encoded = list(pixel_values.num_tiles)
    else:
        encoded = [_checked_length(pixel_values)]
    num_tiles = encoded if given is None else given
    if sum(num_tiles) != len(pixel_values) or min(num_tiles) < 1:
        raise ValueError(
            f"num_patches_list {num_tiles} counts {sum(num_tiles)} tiles, but pixel_values has {len(pixel_values)}. "
            "Give the number of tiles of each image, thumbnails included, as the image processor returns them."
        )
    return num_tiles


def count_tiles_of_each(
    pixel_values: ImageInput | None,
    questions: Sequence[str],
    num_patches_list: Sequence[int | Sequence[int]] | None,
) -> list[list[int]]:
    """Check the images of several conversations, and count the tiles of each image of each conversation.

    Args:
        pixel_values: The images of all conversations in order.
        questions: One question for each conversation.
        num_patches_list: For each conversation the tiles of its image, 0 for none, or a list with those of each image.

    Returns:
        For each conversation the tiles of each image.

    Raises:
        ValueError: See `count_tiles`; also if there are no questions or not one entry for each.
    """
    if isinstance(questions, str) or not hasattr(questions, "__len__") or len(questions) == 0:
        raise ValueError(f"questions is {questions!r}; expected a list with at least one question.")
    count_tiles(pixel_values)
    if num_patches_list is None:
        if pixel_values is not None and len(questions) > 1:
            raise ValueError(
                f"There are {len(questions)} questions and {len(pixel_values)} tiles, but no num_patches_list; "
                "give the number of tiles for each question (0 for none)."
            )
        num_patches_list = [count_tiles(pixel_values) or 0] * len(questions)
    num_patches_list = _as_list(num_patches_list)
    if len(num_patches_list) != len(questions):
        raise ValueError(
            f"num_patches_list has {len(num_patches_list)} entries for {len(questions)} questions; give one each "
            "(a list of numbers for a question about several images)."
        )
    tiles = [_integers(one if isinstance(one, (list, tuple)) else [one]) for one in num_patches_list]
    tiles = [[] if one == [0] else one for one in tiles]
    counts = [count for one in tiles for count in one]
    count_tiles(pixel_values, counts if counts or pixel_values is None else [0])
    return tiles


def _integers(counts: Any) -> list[int]:
    """Read counts from lists, arrays or tensors; the image processor returns the latter."""
    try:
        return [as_integer(None if isinstance(count, bool) else count) for count in _as_list(counts)]
    except TypeError as error:
        raise ValueError(f"num_patches_list holds {counts!r}; expected whole numbers.") from error


def _as_list(counts: Any) -> list[Any]:
    if not hasattr(counts, "__iter__"):
        raise ValueError(f"num_patches_list is {counts!r}; expected a list with the number of tiles of each image.")
    return list(counts)


def _checked_length(pixel_values: Any) -> int:
    """Return the number of tiles of a tensor of tiles."""
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4 or len(pixel_values) == 0:
        found = tuple(pixel_values.shape) if hasattr(pixel_values, "shape") else type(pixel_values).__name__
        raise ValueError(
            f"pixel_values is {found}; expected a tensor (tiles, 3, height, width) with at least one tile, "
            "from the image processor. Pass None to ask without an image."
        )
    return len(pixel_values)


def flagged(tiles: torch.Tensor, image_flags: torch.Tensor | None) -> torch.Tensor:
    """Return the tiles, or their features, that are flagged.

    Args:
        tiles: Tiles or features, the first dimension counting tiles.
        image_flags: 1 for each tile that is in the text; None for all.

    Returns:
        The flagged ones.

    Raises:
        ValueError: If there is not one flag for each tile.
    """
    if image_flags is None:
        return tiles
    image_flags = image_flags.flatten()  # (tiles,)
    if len(image_flags) != len(tiles):
        raise ValueError(f"There are {len(image_flags)} image_flags for {len(tiles)} tiles; give one each.")
    return tiles[(image_flags == 1).to(tiles.device)]
