"""InternVL's processor: the only place that turns messages and images into model inputs.

The prompt comes from the chat template, which the checkpoint's prompt format writes. Each `<image>` in it becomes the
image tokens of that image's tiles, each `<video>` first one `<image>` for each of its frames.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    BaseImageProcessor,
    BatchFeature,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.tokenization_auto import AutoTokenizer, get_tokenizer_config
from transformers.utils import logging

from .collator_internvl import ConversationCollator
from .conversation_internvl import PromptEncoder, Visual, decode_answer, media_apart, prepare_conversation
from .grounding_internvl import GroundingMixin
from .image_loading_internvl import check_images, flatten_images
from .image_processing_internvl import InternVLImageProcessor
from .inputs_internvl import (
    check_length,
    check_padding,
    check_return_tensors,
    checked_prompts,
    refuse_audio,
    rows_of_ids,
)
from .media_internvl import MediaReader
from .prompt_format_internvl import (
    IMAGE_CONTEXT_TOKEN,
    IMAGE_PLACEHOLDER,
    PROMPT_FORMATS,
    VIDEO_PLACEHOLDER,
    PromptFormat,
    prompt_format,
)
from .tile_pixels_internvl import write_tiles  # noqa: F401 (some releases copy only what this file names)
from .tiling_internvl import is_size, tokens_per_tile
from .token_map_internvl import TokenMapMixin
from .tokenization_internlm2 import InternLM2Tokenizer
from .tokenization_internlm2_fast import InternLM2TokenizerFast
from .video_internvl import check_videos, frames_of, is_clip


# What callers of Transformers' processors pass for the text; everything else is a setting of the image processor.
TEXT_KWARGS = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "add_special_tokens")
# Passed by Transformers' own callers, and of no consequence here: the model has no token types.
IGNORED_KWARGS = ("return_mm_token_type_ids", "return_token_type_ids", "do_sample_frames")
# Under which callers of Transformers' processors nest them.
NESTING_KWARGS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "processor_kwargs")
# What belongs to a call of the processor among the arguments of `apply_chat_template`, beside image settings.
CALL_KWARGS = (*TEXT_KWARGS, *IGNORED_KWARGS, *NESTING_KWARGS, "images", "videos", "num_frames", "return_tensors")
# What processor_config.json holds for the loading of processors.
KEPT_KWARGS = {"auto_map", "processor_class", "media_policy"}
# Under which a folder is found.
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# What the Auto classes read themselves, and a class that is loaded directly must not see.
AUTO_KWARGS = ("trust_remote_code", "code_revision", "use_fast", "backend", "config", "_from_auto")

# What a published config.json says about tiles; the image processor knows these names.
TILE_KEYS = (
    "dynamic_image_size",
    "force_image_size",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "pad2square",
    "use_thumbnail",
)

logger = logging.get_logger(__name__)


def _names_in(settings: dict[str, Any], auto_class: str) -> set[str]:
    """Return the names of the classes that the `auto_map` of a file gives for an Auto class."""
    auto_map = settings.get("auto_map") or {}
    named = auto_map.get(auto_class) if isinstance(auto_map, dict) else auto_map
    return {name.rsplit(".", 1)[-1] for name in ([named] if isinstance(named, str) else named or []) if name}


def _load_image_processor(path: str, **kwargs: Any) -> BaseImageProcessor:
    """Load the package's image processor, or the other one whose code the folder names."""
    hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
    try:
        settings, _ = InternVLImageProcessor.get_image_processor_dict(path, **hub_kwargs)
    except OSError:  # no such file
        settings = {}
    named = _names_in(settings, "AutoImageProcessor")
    if named - {InternVLImageProcessor.__name__}:
        return AutoImageProcessor.from_pretrained(path, **kwargs)
    if named:
        return _load_own(InternVLImageProcessor, path, kwargs)
    config = _model_config(path, hub_kwargs)
    return _published_image_processor(config, settings, {k: v for k, v in kwargs.items() if k not in HUB_KWARGS})


def _published_image_processor(config: dict[str, Any], settings: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """Make the image processor of a published folder, whose config.json says how tiles are cut.

    What a preprocessor_config.json of another image processor says, such as the mean, takes precedence.
    """
    published = {name: config[name] for name in TILE_KEYS if config.get(name) is not None}
    published.setdefault("force_image_size", config.get("vision_config", {}).get("image_size"))
    is_of_images = {"image_processor_type", "feature_extractor_type"} & settings.keys()
    settings = InternVLImageProcessor(**published).to_dict() | (settings if is_of_images else {})
    InternVLImageProcessor.register_for_auto_class()  # so that its code is saved with it
    kwargs = {name: value for name, value in kwargs.items() if name not in AUTO_KWARGS}
    return InternVLImageProcessor.from_dict(settings, **kwargs)


def _load_tokenizer(path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the package's tokenizer where the folder names it, the fast one first, else the one that it names."""
    settings = get_tokenizer_config(path, **{name: kwargs[name] for name in HUB_KWARGS if name in kwargs})
    named = {settings.get("tokenizer_class"), *_names_in(settings, "AutoTokenizer")}
    wants_slow = kwargs.get("backend") == "sentencepiece" or kwargs.get("use_fast") is False
    if InternLM2TokenizerFast.__name__ in named and not wants_slow:
        return _load_own(InternLM2TokenizerFast, path, kwargs)
    if named & {InternLM2Tokenizer.__name__, InternLM2TokenizerFast.__name__}:
        return _load_own(InternLM2Tokenizer, path, kwargs)
    return AutoTokenizer.from_pretrained(path, **kwargs)


def _load_own(part: type, path: str, kwargs: dict[str, Any]) -> Any:
    """Load a part by its own class, as the Auto classes do it: saving the part then saves its code."""
    part.register_for_auto_class()
    return part.from_pretrained(path, **{name: value for name, value in kwargs.items() if name not in AUTO_KWARGS})


class InternVLProcessor(GroundingMixin, TokenMapMixin, ProcessorMixin):
    """Joins InternVL's image processor and tokenizer.

    The chat template is written by the prompt format that `template` names, as in `config.json` beside the tokenizer,
    and saved with processor and tokenizer. A tokenizer's own `apply_chat_template`, and whoever tokenizes its text,
    encodes control tokens that a user typed: this processor's keeps them text.

    Args:
        image_processor: Makes tiles.
        tokenizer: The checkpoint's tokenizer.
        chat_template: A Jinja template in place of the format's; the collator, which needs a format, then refuses.
        patch_size: Side of a patch of the vision encoder, in pixels.
        downsample_factor: Side of the square of patches that becomes one image token.
        template: Official name of the prompt format; None where `chat_template` is none of them.
        system_message: System message of conversations without one; None means the format's own.
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
        template: str | None = "internlm2-chat",
        system_message: str | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := kwargs.keys() - KEPT_KWARGS:
            raise TypeError(
                f"InternVLProcessor got {', '.join(sorted(unknown))}, which nothing reads: check the spelling."
            )
        self.patch_size = patch_size
        self.downsample_factor = downsample_factor
        written = None
        if template is not None and tokenizer is not None:
            writes_bos = PromptEncoder(tokenizer).begins_with_bos()
            written = prompt_format(template).chat_template(system_message, writes_bos)
        self.template = template if chat_template in (None, written) else None
        self.system_message = system_message
        super().__init__(image_processor, tokenizer, chat_template=written if chat_template is None else chat_template)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a chat template that is assigned later is the caller's own, as one that is given."""
        if name == "chat_template" and self.__dict__.get(name, value) != value:
            self.template = None
        super().__setattr__(name, value)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> tuple[dict[str, Any], dict]:
        """Read the processor's settings; the prompt format is the one that `config.json` of the folder names.

        A template file of the folder is not used, unless the processor was saved with a template of its own: the
        published ones, and this package's beside another checkpoint, write other prompts than `chat`.
        """
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if kwargs.get(name) is not None}
        given = kwargs.pop("chat_template", None)
        settings, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get("template", "unsaid") is None:  # saved with a template of the caller's own
            return settings | ({} if given is None else {"chat_template": given}), kwargs
        config = _model_config(pretrained_model_name_or_path, hub_kwargs)
        if "patch_size" in config.get("vision_config", {}):
            settings.setdefault("patch_size", config["vision_config"]["patch_size"])
        if config.get("downsample_ratio"):
            settings.setdefault("downsample_factor", round(1 / config["downsample_ratio"]))
        settings |= {name: config[name] for name in ("template", "system_message") if name in config}
        found = settings.pop("chat_template", None)
        if given is not None:
            settings["chat_template"] = given
        elif found is not None and not str(found).startswith("{#- InternVL prompt format"):
            logger.warning_once(
                f"The chat template of {pretrained_model_name_or_path} is not used; prompts are written in the format "
                f"{settings.get('template', 'internlm2-chat')!r}, as chat() writes them. To use it, pass it as "
                "chat_template=."
            )
        return settings, kwargs

    @classmethod
    def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a processor of its loaded parts; Transformers calls this. The loaded tokenizer gets its template."""
        made = super().from_args_and_dict(args, processor_dict, **kwargs)
        processor = made[0] if isinstance(made, tuple) else made
        processor.tokenizer.chat_template = processor.chat_template
        return made

    @property
    def prompt_format(self) -> PromptFormat:
        """The prompt format.

        Raises:
            ValueError: If the chat template is none of the package's.
        """
        if self.template is None:
            raise ValueError(
                "The processor has a chat template of its own; expected one of the package's prompt formats: load it "
                "without chat_template=, or name the format with template=."
            )
        return prompt_format(self.template)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Load the parts; Transformers calls this.

        The package's own parts come from the files beside this one, so that they are of the processor's commit, and
        of its repository, whatever `revision`, `code_revision` or `auto_map` said. The Auto classes would look for
        their code again, without the `code_revision` that brought this file here.
        """
        # Pipelines say the model's type to every part; a tokenizer that keeps it cannot be saved.
        kwargs = {name: value for name, value in kwargs.items() if name not in ("dtype", "torch_dtype")}
        image_processor = _load_image_processor(pretrained_model_name_or_path, **kwargs)
        settings = [*image_processor.valid_kwargs.__annotations__, "media_policy"]
        kwargs = {name: value for name, value in kwargs.items() if name not in settings}
        # Pipelines pad by the tokenizer's side, and generation continues at the right.
        kwargs = {"padding_side": "left", **kwargs}
        return [image_processor, _load_tokenizer(pretrained_model_name_or_path, **kwargs)]

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
                whatever the image processor reads. None in such a list is a prompt without images.
            text: One prompt or several, each with `<image>` where an image stands and `<video>` where a video does;
                without images and videos these are plain text.
            videos: One video, a list for one prompt or in the order of all `<video>`, or one list for each prompt; a
                video is what `frames_of` reads. Its `<video>` becomes "Frame1: <image>", a line for each frame
                ("Frame-1: <image>" in the formats since InternVL 2.5).
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
        check_return_tensors(return_tensors)
        text_kwargs, image_kwargs, num_frames = self._split_kwargs(kwargs)
        if text is None:
            if videos is not None:
                raise ValueError("There are videos, but no text; give it, with <video> where each stands.")
            if images is None:
                raise ValueError("Neither text nor images are given; give at least one of them.")
            return self.image_processor(images, return_tensors=return_tensors or "pt", **image_kwargs)
        prompts, groups, reader = checked_prompts(text), [[]], None
        if images is None and videos is None:
            self.image_processor.tile_limits(0, **image_kwargs)  # a wrong setting is wrong without images as well
        else:
            prompts, groups, reader = self._images_in_order(prompts, images, videos, num_frames, image_kwargs)
        pixel_values, tile_tokens, counts = None, 0, [[] for _ in prompts]
        if any(groups):
            pixel_values, num_tiles = self.tiles_of(groups, image_kwargs, reader)
            tile_tokens = tokens_per_tile(*pixel_values.shape[-2:], self.patch_size, self.downsample_factor)
            counts = [count.tolist() for count in num_tiles.split([len(group) for group in groups])]
        encoder, adds = PromptEncoder(self.tokenizer), text_kwargs.pop("add_special_tokens", True)
        rows = [
            encoder.encode_text(prompt, count, tile_tokens, adds)
            for prompt, count in zip(prompts, counts, strict=True)
        ]
        data = self._pad(rows, return_tensors, **text_kwargs)
        if pixel_values is not None:
            data["pixel_values"] = pixel_values.numpy() if return_tensors == "np" else pixel_values
        return BatchFeature(data)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Write messages as a prompt, or with `tokenize=True` turn them into model inputs.

        Control tokens in messages stay text, however they are cut into items; the prompt is marked for that with
        characters that only this processor's call reads. In a conversation with image items, a typed `<image>` is text
        as well; without them it marks where an image of `images=` stands. So it is with video items and `<video>`.

        Args:
            conversation: Messages with `role` and `content` (text, or a list of text, image and video items), or a
                list of such conversations. Image items may hold `max_tiles` or `resolution`, video items `num_frames`,
                which take precedence over those of the call.
            chat_template: Another template.
            tokenize: Whether to return model inputs.
            return_dict: Whether model inputs are all that `__call__` returns; ids alone otherwise.
            **kwargs: What `__call__` takes, and what the template and `ProcessorMixin.apply_chat_template` take, such
                as `add_generation_prompt`.

        Returns:
            The prompt; with `tokenize=True` ids; with `return_dict=True` also what `__call__` returns.

        Raises:
            ValueError: If messages are not what they should be, with `tokenize=True` an item names nothing and nothing
                is given apart, both name images, or tools are given to a template that does not write them; as
                `__call__`.
        """
        for name in ("tools", "documents"):
            if kwargs.get(name) and name not in str(chat_template or self.chat_template):
                raise ValueError(f"{name} is given, but the chat template writes no {name}: put them into a message.")
        refuse_audio(kwargs)
        call_names = {*CALL_KWARGS, *self.image_processor.valid_kwargs.__annotations__}
        call = {name: kwargs.pop(name) for name in call_names & kwargs.keys()}
        call = {**(call.pop("processor_kwargs", None) or {}), **call}
        messages = prepare_conversation(
            self.tokenizer, conversation, takes_placeholders=not tokenize or "images" in call or "videos" in call
        )
        # Images and videos stay beside the messages: releases rewrite what is in them before they render the template.
        messages, media = media_apart(messages)
        prompt = super().apply_chat_template(messages, chat_template=chat_template, **kwargs)
        if not tokenize:
            return prompt
        if kwargs.get("return_assistant_tokens_mask"):
            raise ValueError("return_assistant_tokens_mask is not available here; data_collator() makes such labels.")
        for name, visuals in media.items():
            if visuals and call.get(name) is not None:
                raise ValueError(f"{name} are named in messages and given apart too; name all of them in one way.")
            if visuals:
                call[name] = visuals
        inputs = self(text=prompt, **call)
        return inputs if return_dict else inputs["input_ids"]

    def count_image_tokens(self, images: Any, **kwargs: Any) -> list[int]:
        """Count the image tokens that each image will take, without decoding it.

        Args:
            images: One image or its size (width, height) in pixels, or a list of them, which are of one prompt.
            **kwargs: What the image processor takes, such as `max_tiles`, `total_max_tiles` and `resolution`.

        Returns:
            For each image its tiles, thumbnail included, times the image tokens of a tile.
        """
        images = [images] if is_size(images) or not isinstance(images, (list, tuple)) else images
        counts = self.count_tiles(self.limited(images, kwargs), kwargs)
        side = self.image_processor.tile_size if kwargs.get("tile_size") is None else kwargs["tile_size"]
        per_tile = tokens_per_tile(side, side, self.patch_size, self.downsample_factor)
        return [count * per_tile for count in counts]

    def data_collator(self, control_tokens: bool = False, **settings: Any) -> ConversationCollator:
        """Return what turns rows of conversations into training batches, the loss on all answers.

        Args:
            control_tokens: Whether control tokens written in answers, such as those of tool calls, are learned as
                tokens; otherwise they are text.
            **settings: `num_frames` of each video, and settings of the image processor, such as `max_tiles`.

        Returns:
            The `data_collator` of a trainer.
        """
        return ConversationCollator(self, control_tokens, **settings)

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
        rows = rows_of_ids(generated_outputs)
        if skip_special_tokens:
            header = prompt_format(self.template).answer_header if self.template else ""
            return [decode_answer(self.tokenizer, row, header=header) for row in rows]
        return [self.tokenizer.decode(row, skip_special_tokens=False, **kwargs) for row in rows]

    def _split_kwargs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int | None]:
        """Sort out what the tokenizer takes, what the image processor takes, and `num_frames`."""
        refuse_audio(kwargs)
        nested = [kwargs.pop(name, None) or {} for name in NESTING_KWARGS]
        # `processor_kwargs`, the last, holds nestings itself.
        nested += [nested[-1].get(name, {}) for name in NESTING_KWARGS[:-1]]
        merged: dict[str, Any] = {}
        for name, value in (entry for group in [*nested, kwargs] for entry in group.items()):
            if name not in NESTING_KWARGS and repr(merged.setdefault(name, value)) != repr(value):
                raise ValueError(
                    f"{name} is given as {merged[name]!r} and as {value!r}, nested and not: give it once."
                )
        kwargs = {name: value for name, value in merged.items() if name not in IGNORED_KWARGS + NESTING_KWARGS}
        text_kwargs = {name: kwargs.pop(name) for name in TEXT_KWARGS if name in kwargs}
        num_frames = kwargs.pop("num_frames", None)
        return text_kwargs, kwargs, num_frames

    def tiles_of(
        self,
        groups: Sequence[Sequence[tuple[Any, int]]],
        image_kwargs: dict[str, Any],
        reader: MediaReader | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut images into tiles.

        Args:
            groups: For each prompt its images, each with its `max_tiles`; a prompt's images share `total_max_tiles`.
            image_kwargs: Settings of the image processor.
            reader: What read the call's videos, and has counted its images.

        Returns:
            Tiles `(total_tiles, 3, tile_size, tile_size)`, and how many each image has `(images,)`.
        """
        limits = [limit for group in groups for _, limit in group]
        images = [[image for image, _ in group] for group in groups]
        settings = self.image_processor.with_limits(image_kwargs, limits)
        tiles = self.image_processor(images, return_tensors="pt", media_reader=reader, **settings)
        return tiles["pixel_values"], tiles["num_patches"]

    def count_tiles(
        self, images: Sequence[tuple[Any, int]], image_kwargs: dict[str, Any], reader: MediaReader | None = None
    ) -> list[int]:
        """Count the tiles that `tiles_of` makes of one prompt's images, without decoding them."""
        settings = self.image_processor.with_limits(image_kwargs, [limit for _, limit in images])
        plans = self.image_processor.plan_all([one for one, _ in images], reader, **settings)
        return [plan.num_tiles for plan in plans]

    def limited(self, images: Sequence[Any], image_kwargs: dict[str, Any]) -> list[tuple[Any, int]]:
        """Return each image with its `max_tiles`: of its own item, else of the call."""
        limits = self.image_processor.tile_limits(len(images), **image_kwargs)
        return [self._limited(image, limit) for image, limit in zip(images, limits, strict=True)]

    def limited_frames(
        self, clip: Any, name: str, num_frames: int | None, reader: MediaReader
    ) -> list[tuple[Any, int]]:
        """Return the frames of a video; each is one tile unless the item of a message sets another limit."""
        clip = clip if isinstance(clip, Visual) else Visual(clip, {})
        _, limit = self._limited(clip, 1)
        num_frames = self.image_processor.item_num_frames(clip.settings.get("num_frames"), num_frames)
        return [(frame, limit) for frame in frames_of(clip.source, name, num_frames, reader)]

    def _images_in_order(
        self, prompts: Sequence[str], images: Any, videos: Any, num_frames: int | None, image_kwargs: dict[str, Any]
    ) -> tuple[list[str], list[list[tuple[Any, int]]], MediaReader]:
        """Write each `<video>` as its frames, and line up images and frames as the prompts name them.

        Returns:
            The prompts, with `<image>` for each frame; for each prompt its images with their `max_tiles`; and what
            reads them within the policy of the call.
        """
        images = [] if images is None else images
        image_groups = _deal(images, _nested_images(images), prompts, IMAGE_PLACEHOLDER, "images")
        clip_groups = [[] for _ in prompts]
        if videos is not None:
            clip_groups = _deal(videos, _nested_videos(videos), prompts, VIDEO_PLACEHOLDER, "videos")
        limited = self.limited([image for group in image_groups for image in group], image_kwargs)
        reader = self.image_processor.media_reader(len(limited))
        check_images([image for image, _ in limited], reader)
        check_videos([clip for clips in clip_groups for clip in clips], reader)
        frame = (prompt_format(self.template) if self.template else PROMPT_FORMATS["internlm2-chat"]).frame
        stills, lines = iter(limited), []
        for prompt, group, clips in zip(prompts, image_groups, clip_groups, strict=True):
            shown = [next(stills) for _ in group]
            named = ((f"videos[{index}]", clip) for index, clip in enumerate(clips))
            frames = [self.limited_frames(clip, name, num_frames, reader) for name, clip in named]
            lines.append(_line_up(prompt, shown, frames, frame))
        return [prompt for prompt, _ in lines], [shown for _, shown in lines], reader

    def _limited(self, image: Any, limit: int) -> tuple[Any, int]:
        """Unwrap an image of a message; what its item says goes before `limit`."""
        if not isinstance(image, Visual):
            return image, limit
        own = {name: value for name, value in image.settings.items() if name != "num_frames"}
        return image.source, self.image_processor.item_limit(own, limit)

    def _pad(
        self,
        rows: list[list[int]],
        return_tensors: str | None,
        padding: bool | str | None = None,
        padding_side: str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, Any]:
        """Truncate and pad rows of ids, never within an image."""
        check_padding(padding_side, pad_to_multiple_of)
        if max_length is not None:
            check_length(max_length, is_used=truncation is not None or padding == "max_length")
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


def _model_config(source: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Read the model's config.json; empty in a folder with the processor alone."""
    try:
        return PretrainedConfig.get_config_dict(source, **hub_kwargs)[0]
    except OSError:
        return {}


def _line_up(prompt: str, images: Sequence[Any], clips: Sequence[list[Any]], label: str) -> tuple[str, list[Any]]:
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
        return "\n".join(label.format(index) + IMAGE_PLACEHOLDER for index in range(1, len(frames) + 1))

    return re.sub(f"{IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER}", write, prompt), lined_up


def _nested_images(images: Any) -> list[list[Any]] | None:
    """Return one list of images for each prompt, if that is what the caller gave."""
    if not isinstance(images, (list, tuple)):
        return None
    is_nested = any(isinstance(one, (list, tuple)) for one in images)
    is_nested = is_nested and all(isinstance(one, (list, tuple, type(None))) for one in images)
    if not is_nested and not any(one is None for one in images):
        return None
    return [[image for image in flatten_images(group) if image is not None] for group in images]


def _nested_videos(videos: Any) -> list[list[Any]] | None:
    """Return one list of videos for each prompt, if that is what the caller gave."""
    is_list = isinstance(videos, (list, tuple))
    if is_list and (any(one is None for one in videos) or not all(map(is_clip, videos))):
        return [[] if group is None else [group] if is_clip(group) else list(group) for group in videos]
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
