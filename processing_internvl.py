"""InternVL's processor: the only place that turns messages and images into model inputs.

The prompt comes from the chat template; each `<image>` in it becomes the places of that image's tiles.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .collator_internvl import ConversationCollator
from .grounding_internvl import GroundingMixin
from .prompt_internvl import (
    IMAGE_CONTEXT_TOKEN,
    IMAGE_PLACEHOLDER,
    decode_answer,
    encode_prompt,
    guard_text,
    place_images,
)
from .tiling_internvl import tokens_per_tile
from .token_map_internvl import TokenMapMixin


# What callers of Transformers' processors pass for the text; everything else is a setting of the image processor.
TEXT_KWARGS = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "add_special_tokens")
# Passed by Transformers' own callers, and of no consequence here: the model has no token types.
IGNORED_KWARGS = ("return_mm_token_type_ids", "return_token_type_ids")


class InternVLProcessor(GroundingMixin, TokenMapMixin, ProcessorMixin):
    """Joins InternVL's image processor and tokenizer.

    Args:
        image_processor: Makes tiles.
        tokenizer: The checkpoint's tokenizer.
        chat_template: Jinja template of the prompt that the model was trained with.
        patch_size: Side of a patch of the vision encoder, in pixels.
        downsample_factor: Side of the square of patches that becomes one image token.
    """

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        patch_size: int = 14,
        downsample_factor: int = 2,
        **kwargs: Any,
    ) -> None:
        self.patch_size = patch_size
        self.downsample_factor = downsample_factor
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Load the parts; Transformers calls this.

        Some releases between 5.0 and 5.23 find AutoImageProcessor only where torchvision is installed; imported from
        its own file it needs no torchvision in any of them.
        """
        image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        settings = getattr(type(image_processor), "valid_kwargs", object).__annotations__
        kwargs = {name: value for name, value in kwargs.items() if name not in settings}
        return [image_processor, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]

    @property
    def image_token(self) -> str:
        """The token that marks the place of one image token."""
        return IMAGE_CONTEXT_TOKEN

    @property
    def image_token_id(self) -> int:
        """Id of `image_token`."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT_TOKEN)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn prompts and images into model inputs.

        Args:
            images: One image, a list for one prompt or in the order of all `<image>`, or one list for each prompt;
                whatever the image processor reads.
            text: One prompt or several, each with `<image>` where an image stands; without images it is plain text.
            videos: Not supported by this processor; pass frames as images.
            return_tensors: "pt" for tensors, "np" for arrays, None for lists (pixel values are always a tensor).
            **kwargs: `padding`, `padding_side` (default "left"), `truncation`, `max_length`, `pad_to_multiple_of`,
                `add_special_tokens`, and settings of the image processor such as `max_tiles`; also nested in
                `text_kwargs`, `images_kwargs`.

        Returns:
            `input_ids` and `attention_mask` (prompts, seq), and with images `pixel_values` (total_tiles, 3, tile_size,
            tile_size). Several prompts are padded whenever tensors are asked for.

        Raises:
            ValueError: If images and `<image>` do not fit, truncation would cut into an image, or nothing is given.
        """
        text_kwargs, image_kwargs = self._split_kwargs(kwargs)
        if videos is not None:
            raise ValueError(
                "videos are given; pass a video's frames as images, with one <image> for each in the text."
            )
        if text is None:
            if images is None:
                raise ValueError("Neither text nor images are given; give at least one of them.")
            return self.image_processor(images, return_tensors=return_tensors or "pt", **image_kwargs)
        prompts = [text] if isinstance(text, str) else list(text)
        pixel_values = None
        if images is None:
            self.image_processor.plan((1, 1), **image_kwargs)  # a wrong setting is wrong without images as well
        else:
            tiles = self.image_processor(images, return_tensors="pt", **image_kwargs)
            pixel_values = tiles["pixel_values"]
            counts = _counts_of_each(images, prompts, tiles["num_patches"].tolist())
            tile_tokens = tokens_per_tile(*pixel_values.shape[-2:], self.patch_size, self.downsample_factor)
            prompts = [
                place_images([], prompt, count, tile_tokens)[1] for prompt, count in zip(prompts, counts, strict=True)
            ]
        data = self._encode(prompts, return_tensors, **text_kwargs)
        if pixel_values is not None:
            data["pixel_values"] = pixel_values.numpy() if return_tensors == "np" else pixel_values
        return BatchFeature(data)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Write messages as a prompt, or with `tokenize=True` turn them into model inputs.

        What a message says never becomes a control token, grounding tags aside. In a conversation with image items,
        a typed `<image>` is text as well; without them it marks where an image of `images=` stands.

        Args:
            conversation: Messages with `role` and `content` (text, or a list of text and image items), or a list of
                such conversations.
            chat_template: Another template.
            **kwargs: What `ProcessorMixin.apply_chat_template` takes, and settings of the image processor.

        Returns:
            The prompt; with `tokenize=True` ids; with `return_dict=True` also what `__call__` returns.
        """
        return super().apply_chat_template(self._guarded(conversation), chat_template=chat_template, **kwargs)

    def count_image_tokens(self, images: Any, **kwargs: Any) -> list[int]:
        """Count the image tokens that each image will take, without decoding it.

        Args:
            images: One image or its size (width, height) as a tuple of two numbers, or a list of them.
            **kwargs: Settings of the image processor, such as `max_tiles`.

        Returns:
            For each image its tiles, thumbnail included, times the image tokens of a tile.
        """
        images = [images] if not isinstance(images, (list, tuple)) or _is_size(images) else images
        plans = [self.image_processor.plan(image, **kwargs) for image in images]
        return [
            plan.num_tiles * tokens_per_tile(plan.tile_size, plan.tile_size, self.patch_size, self.downsample_factor)
            for plan in plans
        ]

    def data_collator(self, **settings: Any) -> ConversationCollator:
        """Return what turns rows of conversations into training batches, the loss on all answers.

        Args:
            **settings: Settings of the image processor, such as `max_tiles`.

        Returns:
            The `data_collator` of a trainer.
        """
        return ConversationCollator(self, **settings)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Decode answers; grounding tags stay even where other special tokens go.

        Args:
            generated_outputs: Token ids `(batch, seq)` or `(seq,)`.
            skip_special_tokens: Whether special tokens go.
            **kwargs: Passed to the tokenizer when special tokens stay.

        Returns:
            One text for each row.
        """
        rows = torch.as_tensor(generated_outputs)
        rows = (rows if rows.ndim > 1 else rows[None]).tolist()
        if skip_special_tokens:
            return [decode_answer(self.tokenizer, row) for row in rows]
        return [self.tokenizer.decode(row, skip_special_tokens=False, **kwargs) for row in rows]

    def _split_kwargs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        nested = {
            **kwargs.pop("common_kwargs", {}),
            **kwargs.pop("text_kwargs", {}),
            **kwargs.pop("images_kwargs", {}),
        }
        kwargs = {name: value for name, value in {**nested, **kwargs}.items() if name not in IGNORED_KWARGS}
        text_kwargs = {name: kwargs.pop(name) for name in TEXT_KWARGS if name in kwargs}
        return text_kwargs, kwargs

    def _encode(
        self,
        prompts: Sequence[str],
        return_tensors: str | None,
        padding: bool | str | None = None,
        padding_side: str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool = True,
    ) -> dict[str, Any]:
        rows = [encode_prompt(self.tokenizer, prompt, add_special_tokens) for prompt in prompts]
        if truncation:
            max_length = self.tokenizer.model_max_length if max_length is None else max_length
            for index, row in enumerate(rows):
                num_image_tokens = row.count(self.image_token_id)
                if row[:max_length].count(self.image_token_id) != num_image_tokens:
                    raise ValueError(
                        f"Prompt {index} has {len(row)} tokens, {num_image_tokens} of them image tokens, "
                        f"and max_length={max_length} would cut some of those off. Allow more, or lower max_tiles."
                    )
            rows = [row[:max_length] for row in rows]
        if padding is None:
            padding = return_tensors is not None
        padded = self.tokenizer.pad(
            {"input_ids": rows},
            padding=padding,
            max_length=max_length,
            padding_side=padding_side or "left",  # generation continues at the right
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
        )
        return {name: padded[name] for name in ("input_ids", "attention_mask")}

    def _guarded(self, conversation: Any) -> Any:
        """Copy messages with every text guarded; a list of conversations alike."""
        if not conversation:
            raise ValueError("The conversation is empty; expected at least one message with role and content.")
        if not isinstance(conversation[0], dict):
            return [self._guarded(one) for one in conversation]
        contents = [_as_items(message.get("content")) for message in conversation]
        has_images = any(item.get("type") == "image" for items in contents for item in items)
        return [
            {
                **message,
                "content": [self._guarded_item(item, has_images or message["role"] != "user") for item in items],
            }
            for message, items in zip(conversation, contents, strict=True)
        ]

    def _guarded_item(self, item: dict[str, Any], placeholder_is_text: bool) -> dict[str, Any]:
        if item["type"] != "text":
            return item
        also = (IMAGE_PLACEHOLDER,) if placeholder_is_text else ()
        return {**item, "text": guard_text(self.tokenizer, item["text"], also=also)}


def _as_items(content: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Write plain text as a text item, which every release of Transformers understands."""
    items = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    for item in items:
        if not isinstance(item, dict) or "type" not in item:
            raise ValueError(f'Content holds {item!r}; expected {{"type": "text", "text": ...}} or an image item.')
    return items


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(side, int) for side in value)


def _counts_of_each(images: Any, prompts: Sequence[str], num_tiles: Sequence[int]) -> list[list[int]]:
    """Deal the tiles of all images out to the prompts: by nesting where images are nested, else by `<image>`."""
    if isinstance(images, (list, tuple)) and images and all(isinstance(one, (list, tuple)) for one in images):
        if len(images) != len(prompts):
            raise ValueError(f"There are {len(images)} lists of images for {len(prompts)} prompts; give one for each.")
        sizes = [len(one) for one in images]
    elif len(prompts) == 1:
        sizes = [len(num_tiles)]
    else:
        sizes = [prompt.count(IMAGE_PLACEHOLDER) for prompt in prompts]
        if sum(sizes) != len(num_tiles):
            raise ValueError(
                f"The prompts have {sum(sizes)} {IMAGE_PLACEHOLDER} for {len(num_tiles)} images; "
                f"write {IMAGE_PLACEHOLDER} once where each image stands."
            )
    tiles = iter(num_tiles)
    return [[next(tiles) for _ in range(size)] for size in sizes]


__all__ = ["InternVLProcessor"]
