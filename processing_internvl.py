"""InternVL's processor: the only place that turns messages and images into model inputs.

The prompt comes from the chat template; each `<image>` in it becomes the places of that image's tiles, each `<video>`
first one `<image>` for each of its frames.
"""

import re
from collections.abc import Iterable, Sequence
from reprlib import repr as shortened
from typing import Any

from transformers import AutoTokenizer, BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .collator_internvl import ConversationCollator
from .grounding_internvl import GroundingMixin
from .image_loading_internvl import flatten_images
from .media_internvl import MediaPolicy  # noqa: F401 (some releases copy only what this file names)
from .messages_internvl import Visual, prepare_conversation
from .prompt_internvl import (
    IMAGE_CONTEXT_TOKEN,
    IMAGE_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    decode_answer,
    encode_prompt,
    place_images,
)
from .tiling_internvl import is_size, tokens_per_tile
from .token_map_internvl import TokenMapMixin
from .video_internvl import frames_of, is_clip


# What callers of Transformers' processors pass for the text; everything else is a setting of the image processor.
TEXT_KWARGS = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "add_special_tokens")
# Passed by Transformers' own callers, and of no consequence here: the model has no token types.
IGNORED_KWARGS = ("return_mm_token_type_ids", "return_token_type_ids", "do_sample_frames")
# Under which callers of Transformers' processors nest them.
NESTING_KWARGS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "processor_kwargs")
# In place of every way to say it, once it is known for each picture.
LIMITS_SETTLED = {"resolution": None, "max_patches": None, "crop_to_patches": None}


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
        # Pipelines say the model's type to every part; a tokenizer that keeps it cannot be saved.
        kwargs = {name: value for name, value in kwargs.items() if name not in ("dtype", "torch_dtype")}
        image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        settings = [*image_processor.valid_kwargs.__annotations__, "media_policy"]
        kwargs = {name: value for name, value in kwargs.items() if name not in settings}
        # Pipelines pad by the tokenizer's side, and generation continues at the right.
        kwargs = {"padding_side": "left", **kwargs}
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
            text: One prompt or several, each with `<image>` where an image stands and `<video>` where a video does;
                without images and videos these are plain text.
            videos: One video, a list for one prompt or in the order of all `<video>`, or one list for each prompt; a
                video is what `frames_of` reads. Its `<video>` becomes "Frame1: <image>", a line for each frame.
            return_tensors: "pt" for tensors, "np" for arrays, None for lists (pixel values are always a tensor).
            **kwargs: `padding`, `padding_side` (default "left"), `truncation`, `max_length`, `pad_to_multiple_of`,
                `add_special_tokens`; `num_frames` of each video; and what the image processor takes, such as
                `max_tiles`, `total_max_tiles` or `resolution`, which limit images (a frame is one tile) and `dtype`;
                also nested in `text_kwargs`, `images_kwargs`, `videos_kwargs`.

        Returns:
            `input_ids` and `attention_mask` (prompts, seq), and with images `pixel_values` (total_tiles, 3, tile_size,
            tile_size). Several prompts are padded whenever tensors are asked for.

        Raises:
            ValueError: If images or videos and their places do not fit, truncation would cut into an image, text is
                no text, or nothing is given; further errors as the image processor and `frames_of` say.
        """
        text_kwargs, image_kwargs, num_frames = self._split_kwargs(kwargs)
        if text is None:
            if videos is not None:
                raise ValueError("There are videos, but no text; give it, with <video> where each stands.")
            if images is None:
                raise ValueError("Neither text nor images are given; give at least one of them.")
            return self.image_processor(images, return_tensors=return_tensors or "pt", **image_kwargs)
        prompts, groups = _checked_prompts(text), [[]]
        if images is None and videos is None:
            self.image_processor.tile_limits(0, **image_kwargs)  # a wrong setting is wrong without images as well
        else:
            prompts, groups = self._pictures_in_order(prompts, images, videos, num_frames, image_kwargs)
        pixel_values = None
        if any(groups):
            pictures = [[picture for picture, _ in group] for group in groups]
            limits = [limit for group in groups for _, limit in group]
            settings = {**image_kwargs, **LIMITS_SETTLED, "max_tiles": limits}
            tiles = self.image_processor(pictures, return_tensors="pt", **settings)
            pixel_values = tiles["pixel_values"]
            tile_tokens = tokens_per_tile(*pixel_values.shape[-2:], self.patch_size, self.downsample_factor)
            counts = tiles["num_patches"].split([len(group) for group in groups])
            prompts = [
                place_images([], prompt, count.tolist(), tile_tokens)[1]
                for prompt, count in zip(prompts, counts, strict=True)
            ]
        data = self._encode(prompts, return_tensors, **text_kwargs)
        if pixel_values is not None:
            data["pixel_values"] = pixel_values.numpy() if return_tensors == "np" else pixel_values
        return BatchFeature(data)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Write messages as a prompt, or with `tokenize=True` turn them into model inputs.

        What a message says never becomes a control token, grounding tags aside. In a conversation with image items,
        a typed `<image>` is text as well; without them it marks where an image of `images=` stands. So it is with
        video items and `<video>`.

        Args:
            conversation: Messages with `role` and `content` (text, or a list of text, image and video items), or a
                list of such conversations. Image items may hold `max_tiles` or `resolution`, video items `num_frames`,
                which go before those of the call.
            chat_template: Another template.
            **kwargs: What `ProcessorMixin.apply_chat_template` takes, and what `__call__` takes.

        Returns:
            The prompt; with `tokenize=True` ids; with `return_dict=True` also what `__call__` returns.

        Raises:
            ValueError: If messages are not what they should be, or with `tokenize=True` an item names nothing and
                nothing is given apart; as `__call__`.
        """
        given = {**kwargs, **(kwargs.get("processor_kwargs") or {})}
        takes_places = not kwargs.get("tokenize") or "images" in given or "videos" in given
        return super().apply_chat_template(
            prepare_conversation(self.tokenizer, conversation, takes_places), chat_template=chat_template, **kwargs
        )

    def count_image_tokens(self, images: Any, **kwargs: Any) -> list[int]:
        """Count the image tokens that each image will take, without decoding it.

        Args:
            images: One image or its size (width, height) in pixels, or a list of them, which are of one prompt.
            **kwargs: What the image processor takes, such as `max_tiles`, `total_max_tiles` and `resolution`.

        Returns:
            For each image its tiles, thumbnail included, times the image tokens of a tile.
        """
        images = [images] if is_size(images) or not isinstance(images, (list, tuple)) else images
        limits = self.image_processor.tile_limits(len(images), **kwargs)
        pictures = [self._limited(image, limit) for image, limit in zip(images, limits, strict=True)]
        settings = {**kwargs, **LIMITS_SETTLED, "max_tiles": [limit for _, limit in pictures]}
        plans = self.image_processor.plan_all([source for source, _ in pictures], **settings)
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
            generated_outputs: Token ids `(batch, seq)` or `(seq,)`; rows of lists may differ in length.
            skip_special_tokens: Whether special tokens go.
            **kwargs: Passed to the tokenizer when special tokens stay.

        Returns:
            One text for each row.

        Raises:
            ValueError: If they are no token ids.
        """
        rows = _rows_of_ids(generated_outputs)
        if skip_special_tokens:
            return [decode_answer(self.tokenizer, row) for row in rows]
        return [self.tokenizer.decode(row, skip_special_tokens=False, **kwargs) for row in rows]

    def _split_kwargs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int | None]:
        """Sort out what the tokenizer takes, what the image processor takes, and `num_frames`."""
        nested = [kwargs.pop(name, None) or {} for name in NESTING_KWARGS]
        # `processor_kwargs`, the last, holds nestings itself.
        nested += [nested[-1].get(name, {}) for name in NESTING_KWARGS[:-1]]
        merged = {name: value for group in [*nested, kwargs] for name, value in group.items()}
        kwargs = {name: value for name, value in merged.items() if name not in IGNORED_KWARGS + NESTING_KWARGS}
        text_kwargs = {name: kwargs.pop(name) for name in TEXT_KWARGS if name in kwargs}
        num_frames = kwargs.pop("num_frames", None)
        return text_kwargs, kwargs, num_frames

    def _pictures_in_order(
        self, prompts: Sequence[str], images: Any, videos: Any, num_frames: int | None, image_kwargs: dict[str, Any]
    ) -> tuple[list[str], list[list[tuple[Any, int]]]]:
        """Write each `<video>` as its frames, and line up images and frames as the prompts name them.

        Returns:
            The prompts, with `<image>` for each frame, and for each prompt its pictures with their `max_tiles`.
        """
        images = [] if images is None else images
        image_groups = _deal(images, _nested_images(images), prompts, IMAGE_PLACEHOLDER, "images")
        clip_groups = [[] for _ in prompts]
        if videos is not None:
            clip_groups = _deal(videos, _nested_videos(videos), prompts, VIDEO_PLACEHOLDER, "videos")
        limits = iter(self.image_processor.tile_limits(sum(map(len, image_groups)), **image_kwargs))
        lines = [
            _line_up(
                prompt,
                [self._limited(image, next(limits)) for image in group],
                [self._limited_frames(clip, f"videos[{index}]", num_frames) for index, clip in enumerate(clips)],
            )
            for prompt, group, clips in zip(prompts, image_groups, clip_groups, strict=True)
        ]
        return [prompt for prompt, _ in lines], [pictures for _, pictures in lines]

    def _limited(self, image: Any, limit: int) -> tuple[Any, int]:
        """Unwrap an image of a message; what its item says goes before `limit`."""
        if not isinstance(image, Visual):
            return image, limit
        own = {name: value for name, value in image.settings.items() if name != "num_frames"}
        return image.source, self.image_processor.item_limit(own, limit)

    def _limited_frames(self, clip: Any, name: str, num_frames: int | None) -> list[tuple[Any, int]]:
        """Return the frames of a video; each is one tile unless the item of a message says otherwise."""
        clip = clip if isinstance(clip, Visual) else Visual(clip, {})
        _, limit = self._limited(clip, 1)
        num_frames = self.image_processor.item_num_frames(clip.settings.get("num_frames"), num_frames)
        reader = self.image_processor.media_reader()
        return [(frame, limit) for frame in frames_of(clip.source, name, num_frames, reader)]

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
        if max_length is not None:
            _check_length(max_length, is_used=truncation is not None or padding == "max_length")
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


def _checked_prompts(text: Any) -> list[str]:
    """Return the prompts of a call.

    Raises:
        ValueError: If there is none, or one is no text.
    """
    prompts = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text]
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(
            f"text is {shortened(text)}, expected a prompt or a list of at least one; images come first, and messages "
            "go to apply_chat_template."
        )
    return prompts


def _rows_of_ids(token_ids: Any) -> list[list[int]]:
    """Return token ids `(batch, seq)` or `(seq,)` as a list for each row.

    Raises:
        ValueError: If they are something else.
    """

    def plain(values: Any) -> Any:
        values = values.tolist() if hasattr(values, "tolist") else values
        return [plain(value) for value in values] if isinstance(values, (list, tuple)) else values

    rows = plain(token_ids)
    if isinstance(rows, list) and not any(isinstance(row, list) for row in rows):
        rows = [rows]
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and all(isinstance(token_id, int) for token_id in row) for row in rows
    ):
        raise ValueError(
            f"The token ids are {shortened(token_ids)}, expected (batch, seq) or (seq,), as generate returns them."
        )
    return rows


def _check_length(max_length: int, is_used: bool) -> None:
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}, expected at least 1.")
    if not is_used:
        raise ValueError(f"max_length is {max_length}: say truncation=True or padding='max_length' as well.")


def _line_up(prompt: str, images: Sequence[Any], clips: Sequence[list[Any]]) -> tuple[str, list[Any]]:
    """Write the frames of each `<video>`, and return images and frames in the order of their `<image>`."""
    if not clips:
        return prompt, list(images)
    lined_up = []
    images, clips = iter(images), iter(clips)

    def write(match: re.Match[str]) -> str:
        if match[0] == IMAGE_PLACEHOLDER:
            lined_up.append(next(images))
            return match[0]
        frames = next(clips)
        lined_up.extend(frames)
        return "\n".join(f"Frame{index}: {IMAGE_PLACEHOLDER}" for index in range(1, len(frames) + 1))

    return re.sub(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}", write, prompt), lined_up


def _nested_images(images: Any) -> list[list[Any]] | None:
    """Return one list of images for each prompt, if that is what the caller gave."""
    if isinstance(images, (list, tuple)) and images and all(isinstance(one, (list, tuple)) for one in images):
        return [flatten_images(group) for group in images]
    return None


def _nested_videos(videos: Any) -> list[list[Any]] | None:
    """Return one list of videos for each prompt, if that is what the caller gave."""
    if isinstance(videos, (list, tuple)) and videos and not all(map(is_clip, videos)):
        return [[group] if is_clip(group) else list(group) for group in videos]
    return None


def _deal(
    visuals: Any, nested: list[list[Any]] | None, prompts: Sequence[str], placeholder: str, kind: str
) -> list[list[Any]]:
    """Deal images or videos out to the prompts: by nesting where they are nested, else by their places."""
    groups = nested
    if nested is None:
        flat = flatten_images(visuals) if kind == "images" else [visuals] if is_clip(visuals) else list(visuals)
        places = [prompt.count(placeholder) for prompt in prompts]
        if len(prompts) == 1:
            places = [len(flat)]
        elif sum(places) != len(flat):
            raise ValueError(
                f"The prompts have {sum(places)} {placeholder} for {len(flat)} {kind}; "
                f"write {placeholder} once where each stands."
            )
        rest = iter(flat)
        groups = [[next(rest) for _ in range(count)] for count in places]
    if len(groups) != len(prompts):
        raise ValueError(f"There are {len(groups)} lists of {kind} for {len(prompts)} prompts; give one for each.")
    for prompt, group in zip(prompts, groups, strict=True):
        found = prompt.count(placeholder)
        if found != len(group):
            raise ValueError(
                f"A prompt has {found} {placeholder} for {len(group)} {kind}; "
                f"write {placeholder} once where each stands."
            )
    return groups


__all__ = ["InternVLProcessor"]
