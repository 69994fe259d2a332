"""InternVL's image processor: pictures to normalised tiles for the ViT, equal to the official code bit for bit.

The tile plan decides which grid a picture gets, the loading file how a file or an array becomes an RGB picture, the
pixel file how that becomes tiles. Here are the settings and the calls: "dynamic high resolution" of InternVL 1.5,
arXiv 2404.16821, section 3.3.

Shapes: num_tiles is the number of tiles of one picture with its thumbnail, total_tiles that of all pictures of a call.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature
from transformers.processing_utils import Unpack

from .image_loading_internvl import check_image, check_images, flatten_images, open_picture, picture_size, to_rgb
from .inputs_internvl import check_return_tensors
from .media_internvl import MediaPolicy, MediaReader, MediaRefusedError
from .media_internvl import media_policy as read_policy
from .tile_pixels_internvl import empty_tiles, pad_to_square, write_tiles
from .tiling_internvl import TilePlan, checked_size, plan_tiles, plan_together


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The paper's flexible resolution: from one tile up to 40, of which training saw 12 at most.
RESOLUTIONS = ("low", "high", "auto")
HIGH_RESOLUTION_TILES = 40


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The settings of one call, checked.

    The defaults are what the weights were trained with, and differ from the official code where that shows the model
    something else than a person sees. `apply_exif_orientation=False, composite_alpha=False, rescale_depth=False` gives
    the official result for every picture.

    Attributes:
        min_tiles: Smallest number of tiles of the grid.
        max_tiles: Largest number of tiles of the grid, the thumbnail not counted: 12 in training, up to 40 in use.
        total_max_tiles: Most tiles of all pictures of a prompt, thumbnails counted, shared out as `plan_together`
            says; None for no such limit.
        use_thumbnail: Whether a picture of several tiles is followed by a thumbnail of the whole.
        tile_size: Side of a tile in pixels.
        image_mean: Mean per channel (R, G, B) of values in 0..1.
        image_std: Standard deviation per channel (R, G, B) of values in 0..1.
        pad2square: Pad the picture to a square in the mean colour before it is resized to its only tile, for
            checkpoints trained so before dynamic resolution; needs `max_tiles=1`.
        apply_exif_orientation: Turn photographs upright.
        composite_alpha: Put transparent pictures on white instead of dropping the alpha channel.
        rescale_depth: Scale 16-bit and float pictures by their range instead of clipping them at 255.

    Raises:
        ValueError: If a value is out of its range or of another type.
    """

    min_tiles: int = 1
    max_tiles: int = 12
    total_max_tiles: int | None = None
    use_thumbnail: bool = True
    tile_size: int = 448
    image_mean: list[float] | tuple[float, ...] = IMAGENET_MEAN
    image_std: list[float] | tuple[float, ...] = IMAGENET_STD
    pad2square: bool = False
    apply_exif_orientation: bool = True
    composite_alpha: bool = True
    rescale_depth: bool = True

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type is bool and not isinstance(value, bool):
                raise ValueError(f"{setting.name} is {value!r}, expected True or False.")
            is_number = isinstance(value, (Integral, type(None))) and not isinstance(value, bool)
            if setting.type in (int, int | None) and not is_number:
                raise ValueError(f"{setting.name} is {value!r}, expected a whole number.")
        self.plan(1, 1)  # checks the limits and the tile size
        if self.total_max_tiles is not None and self.total_max_tiles < 1:
            raise ValueError(f"total_max_tiles is {self.total_max_tiles}, expected at least 1, or None for no limit.")
        for name in ("image_mean", "image_std"):
            given = getattr(self, name)
            values = tuple(given) if hasattr(given, "__iter__") else ()  # JSON gives lists
            if len(values) != 3 or not all(map(_is_finite, values)):
                raise ValueError(f"{name} is {given!r}, expected three numbers for red, green and blue.")
            object.__setattr__(self, name, values)
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}, expected positive numbers: values are divided by them.")
        if (
            min(self.image_std) < 0.001
            or max(self.image_std) > 1
            or not 0 <= min(self.image_mean) <= max(self.image_mean) <= 1
        ):
            raise ValueError(
                f"image_mean is {self.image_mean} and image_std {self.image_std}, expected 0 to 1 and 0.001 to 1, for "
                "values in 0..1: divide by 255 what is meant for values in 0..255."
            )
        if self.pad2square and self.max_tiles > 1:
            raise ValueError(
                f"pad2square makes one square tile, but max_tiles is {self.max_tiles}: "
                "set max_tiles=1 to pad, or pad2square=False to cut the picture into tiles."
            )

    def plan(self, width: int, height: int) -> TilePlan:
        """Plan the tiles of a picture of this size in pixels."""
        return plan_tiles(
            width,
            height,
            min_tiles=self.min_tiles,
            max_tiles=self.max_tiles,
            use_thumbnail=self.use_thumbnail,
            tile_size=self.tile_size,
        )


# Names that the users of Transformers' own InternVL image processor pass; so does TRL with `crop_to_patches`.
OTHER_NAMES = {
    "min_patches": "min_tiles",
    "max_patches": "max_tiles",
    # In the official code and in published config.json files.
    "min_num": "min_tiles",
    "max_num": "max_tiles",
    "min_dynamic_patch": "min_tiles",
    "max_dynamic_patch": "max_tiles",
    "image_size": "tile_size",
    "force_image_size": "tile_size",
}
# False under either name means one tile for each image.
CUTTING_NAMES = ("crop_to_patches", "dynamic_image_size")
ONE_TILE = {"min_tiles": 1, "max_tiles": 1}

# What `preprocessor_config.json` files of other image processors say, the published CLIP-style ones of InternVL among
# them. Some have a meaning here, which cannot be changed; the others have none.
FIXED_VALUES = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3}
FIXED_VALUES["rescale_factor"] = 1 / 255
IGNORED_NAMES = frozenset(
    ("crop_size", "default_to_square", "do_center_crop", "do_pad", "image_processor_type", "size")
)
# Kept by Transformers' base class.
BASE_NAMES = frozenset(("auto_map", "feature_extractor_type", "processor_class"))

# Said of a single call, and no settings.
CALL_NAMES = frozenset(("dtype", "input_data_format", "media_reader", "return_tensors"))

# Transformers reads from this which keywords belong to the image processor.
InternVLImageProcessorKwargs = TypedDict(
    "InternVLImageProcessorKwargs",
    {field.name: field.type | None for field in fields(ImageSettings)}
    | dict.fromkeys(CUTTING_NAMES, bool | None)
    | dict.fromkeys(OTHER_NAMES, int | list[int] | None)
    | {"resolution": str | None}
    | {"input_data_format": str | None, "return_tensors": str | None},
    total=False,
)


class InternVLImageProcessor(BaseImageProcessor):
    """Turn images into square tiles for InternVL, by default of 448 x 448 pixels.

    The settings are those of `ImageSettings`; each can be given here, to `from_pretrained`, and to a single call. A
    call also takes `max_tiles` as a list, one for each image, or `resolution` in its place, for all images or as a
    list: "low" is one tile, "auto" the processor's own `max_tiles`, "high" 40, or the processor's own if that is more.

    `media_policy`, given here or to `from_pretrained`, says what may be read and how much of it: "local" (default)
    reads every path and URL, for notebooks; "inline" reads objects, bytes, data URIs and base64 alone, for servers
    that pass on what strangers say; a dict says more, see `MediaPolicy`. It is never saved, and no file of a
    checkpoint can set it.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = InternVLImageProcessorKwargs

    def __init__(
        self,
        *,
        media_policy: str | dict[str, Any] | MediaPolicy = "local",
        **kwargs: Unpack[InternVLImageProcessorKwargs],
    ) -> None:
        policy = read_policy(media_policy)
        size = kwargs.get("size")
        if size is not None and kwargs.get("tile_size") is None:
            kwargs["tile_size"] = _side(size)
        super().__init__(**{name: kwargs.pop(name) for name in BASE_NAMES & kwargs.keys()})
        own = {name: value for name, value in kwargs.items() if name not in IGNORED_NAMES and not name.startswith("_")}
        for name, value in asdict(_settings({}, own)).items():
            setattr(self, name, value)
        self.media_policy = policy

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a processor from what a file says, the caller's settings in place of the file's; all are checked.

        Other keywords than settings come along from the loading of models and tokenizers and pass, but for those that
        are misspelt settings, or settings of other image processors. `media_policy` is the caller's alone.
        """
        if "media_policy" in image_processor_dict:
            raise ValueError(
                "The config of the image processor names a media_policy, which a file must not set: remove it, and "
                "give media_policy to from_pretrained."
            )
        policy = {name: kwargs.pop(name) for name in ("media_policy",) if name in kwargs}
        known = [*InternVLImageProcessorKwargs.__annotations__, *FIXED_VALUES]
        settings = {name: kwargs.pop(name) for name in known if name in kwargs}
        if unknown := [name for name in kwargs if name in IGNORED_NAMES or get_close_matches(name, known, 1, 0.8)]:
            raise _unknown_settings(unknown)
        return super().from_dict({**image_processor_dict, **_own_names(settings), **policy}, **kwargs)

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = "pt",
        input_data_format: str | None = None,
        dtype: torch.dtype | str | None = None,
        media_reader: MediaReader | None = None,
        **kwargs: Unpack[InternVLImageProcessorKwargs],
    ) -> BatchFeature:
        """Turn images into normalised tiles.

        Args:
            images: One image or a list, possibly nested (one list per prompt): PIL images, paths, URLs (http, https,
                file, data), base64 text, encoded bytes, binary files, dicts with `bytes` or `path`, NumPy arrays or
                torch tensors. Arrays are (height, width) or
                have 1, 3 or 4 channels first or last; uint8, uint16 or float in [0, 1]. Animations give one frame.
            return_tensors: "pt" for torch tensors, "np" or None for NumPy arrays.
            input_data_format: "channels_first" or "channels_last" where the shape of an array leaves it open.
            dtype: Type of the pixel values, such as `torch.bfloat16`: what casting them afterwards gives, without the
                float32 tiles. By default float32.
            media_reader: Reads what belongs to the same call, as `media_reader()` made it; it has counted the images
                already.
            **kwargs: Settings that this call changes, see `ImageSettings`; `max_tiles` and `resolution` may be lists
                of one for each image, None where the processor's own applies.

        Returns:
            `pixel_values` (total_tiles, 3, tile_size, tile_size), of type `dtype`: for each image the tiles of its
            grid row by row, then its thumbnail; and `num_patches` (num_images,), int64: tiles per image, thumbnail
            included. They are named patches because Transformers' own InternVL names them so and TRL reads that name.

        Raises:
            ValueError, TypeError, OSError: If there is no image, one cannot be read, or a setting is wrong.
        """
        check_return_tensors(return_tensors)
        groups = _by_prompt(images)
        images = [image for group in groups for image in group]
        if not images:
            raise ValueError("Got no images, expected at least one: leave the call out for samples without images.")
        settings, limits = self._call_settings(kwargs, len(images))
        pictures = self._open_all(images, media_reader or self.media_reader(len(images)), input_data_format)
        sizes = [picture_size(picture, settings.apply_exif_orientation) for picture in pictures]
        plans = self._plan_prompts(settings, sizes, limits, [len(group) for group in groups])
        num_patches = np.array([plan.num_tiles for plan in plans], dtype=np.int64)

        pixel_values = empty_tiles(int(num_patches.sum()), settings.tile_size, _torch_dtype(dtype))
        ends = num_patches.cumsum()
        pictures.reverse()  # taken from the end, so that each is freed once its tiles are made
        for index, (plan, end) in enumerate(zip(plans, ends, strict=True)):
            tiles = pixel_values[end - plan.num_tiles : end]
            write_tiles(
                _prepared(pictures.pop(), f"images[{index}]", settings),
                plan,
                settings.image_mean,
                settings.image_std,
                out=tiles,
            )
        # NumPy has no bfloat16, and says so.
        values = pixel_values if return_tensors == "pt" else pixel_values.numpy()
        return BatchFeature({"pixel_values": values, "num_patches": num_patches}, tensor_type=return_tensors)

    def plan(self, image: Any, **kwargs: Unpack[InternVLImageProcessorKwargs]) -> TilePlan:
        """Plan the tiles of an image without decoding it.

        Args:
            image: Size (width, height) in pixels, or any single image that `preprocess` takes.
            **kwargs: Settings that this call changes, see `ImageSettings`.

        Returns:
            The plan by which `preprocess` cuts the image.

        Raises:
            ValueError, TypeError, OSError: As `preprocess` does, except for damage that only decoding shows.
        """
        (plan,) = self.plan_all([image], **kwargs)
        return plan

    def plan_all(
        self,
        images: Sequence[Any],
        media_reader: MediaReader | None = None,
        **kwargs: Unpack[InternVLImageProcessorKwargs],
    ) -> list[TilePlan]:
        """Plan the tiles of the images of one prompt, which share `total_max_tiles`, without decoding them.

        Args:
            images: Images as `plan` takes them.
            media_reader: See `preprocess`.
            **kwargs: Settings that this call changes, as `preprocess` takes them.

        Returns:
            The plan of each image.

        Raises:
            ValueError, TypeError, OSError: As `preprocess` does, except for damage that only decoding shows.
        """
        settings, limits = self._call_settings(kwargs, len(images))
        sizes = self._upright_sizes(images, media_reader or self.media_reader(len(images)), **kwargs)
        return self._plan_prompts(settings, sizes, limits, [len(images)])

    def media_reader(self, num_images: int = 0) -> MediaReader:
        """Return what reads all images and videos of one call, within the `media_policy`.

        Args:
            num_images: How many images the call has; frames of videos are counted as they are chosen.

        Raises:
            MediaRefusedError: If the policy does not allow so many.
        """
        reader = MediaReader(self.media_policy)
        reader.count_images(num_images)
        return reader

    def item_limit(self, settings: dict[str, Any], limit: int) -> int:
        """Return the `max_tiles` of an image beside which a message says something of it.

        A message may come from a stranger: it lowers the limit as it likes, and raises it up to the ceiling at most,
        which is the `max_tiles_per_image` of the policy, or the processor's or the call's own limit if that is more.

        Args:
            settings: What the item of the message says of `max_tiles` or `resolution`.
            limit: The limit that holds without it.

        Returns:
            The limit, at least 1.

        Raises:
            ValueError: If the message does not say a positive whole number, or a resolution.
        """
        settings = {name: value for name, value in settings.items() if value is not None}
        if not settings:
            return limit
        ceiling = self.media_policy.max_tiles_per_image
        ceiling = math.inf if ceiling is None else max(ceiling, limit, self.max_tiles)
        wanted = settings.get("max_tiles", 1)
        if not isinstance(wanted, Integral) or isinstance(wanted, bool):
            raise ValueError(f"max_tiles is {wanted!r} in an item of a message, expected a whole number.")
        if wanted > ceiling:
            settings["max_tiles"] = ceiling
        return min(self.tile_limits(1, **settings)[0], ceiling)

    def item_num_frames(self, wanted: int | None, num_frames: int | None) -> int | None:
        """Return the `num_frames` of a video beside which a message says `wanted`; `num_frames` holds without it."""
        if wanted is None:
            return num_frames
        ceiling = self.media_policy.max_frames_per_video
        if ceiling is None or not isinstance(wanted, Integral):
            return wanted
        return min(wanted, max(ceiling, num_frames or 1))

    def tile_limits(self, num_images: int, **kwargs: Unpack[InternVLImageProcessorKwargs]) -> list[int]:
        """Return the `max_tiles` that the settings of a call mean for each of `num_images` images."""
        return self._call_settings(kwargs, num_images)[1]

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Count the tiles of a picture, thumbnail included; the name is the one Transformers and vLLM call.

        Args:
            height: Height of the upright picture in pixels.
            width: Width of the upright picture in pixels.
            images_kwargs: Settings to change, see `ImageSettings`.

        Returns:
            Number of tiles.
        """
        return self.plan((width, height), **(images_kwargs or {})).num_tiles

    def upright_size(self, image: Any, **kwargs: Unpack[InternVLImageProcessorKwargs]) -> tuple[int, int]:
        """Return the size (width, height) in pixels of an image as the model sees it, without decoding it.

        Args:
            image: Size (width, height) in pixels, or any single image that `preprocess` takes.
            **kwargs: Settings that this call changes, see `ImageSettings`.

        Returns:
            Width and height, exchanged if EXIF data turn the picture.

        Raises:
            ValueError, TypeError, OSError: As `plan`.
        """
        return self._upright_sizes([image], self.media_reader(1), **kwargs)[0]

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open paths, URLs, base64 and bytes in place, in lists of any depth; Transformers' processors call this.

        The inherited method would turn pictures to RGB before the settings for transparency and depth could apply.
        """
        reader = self.media_reader(len(flatten_images(image_url_or_urls)))

        def opened(image: Any) -> Any:
            if isinstance(image, (list, tuple)):
                return [opened(one) for one in image]
            return image if hasattr(image, "ndim") else open_picture(image, "image", reader=reader)

        return opened(image_url_or_urls)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, and with them the published keys that make CLIP's image processor fit the model."""
        published = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3}
        saved = {*BASE_NAMES, "image_processor_type", *(field.name for field in fields(ImageSettings))}
        own = {name: value for name, value in super().to_dict().items() if name in saved}
        return own | published | {"crop_size": self.tile_size, "size": self.tile_size}

    def with_limits(self, settings: dict[str, Any], limits: Sequence[int]) -> dict[str, Any]:
        """Return settings of a call with a limit for each image, in place of every other way to limit tiles."""
        ways = {"resolution", *CUTTING_NAMES}
        rest = {
            name: value
            for name, value in settings.items()
            if name not in ways and OTHER_NAMES.get(name, name) != "max_tiles"
        }
        return rest | {"max_tiles": list(limits)}

    def _call_settings(self, changes: dict[str, Any], num_images: int) -> tuple[ImageSettings, list[int]]:
        """Merge the settings of a call into those of the processor, and find the `max_tiles` of each image.

        A limit for each image, or a resolution, takes `min_tiles` down with it. What is no setting (`return_tensors`
        and the like) may come along.
        """
        changes = _own_names({name: value for name, value in changes.items() if name not in CALL_NAMES})
        current = {field.name: getattr(self, field.name) for field in fields(ImageSettings)}
        resolution, wanted = changes.pop("resolution", None), changes.get("max_tiles")
        if resolution is not None and wanted is not None:
            raise ValueError("resolution and max_tiles are both given, and both limit the tiles: give one of them.")
        if resolution is None and not isinstance(wanted, (list, tuple)):
            settings = _settings(current, changes)
            return settings, [settings.max_tiles] * num_images
        if resolution is None:
            limits = [self._limit(one) for one in _for_each("max_tiles", wanted, num_images)]
        else:
            limits = [self._limit_of_resolution(one) for one in _for_each("resolution", resolution, num_images)]
        changes["max_tiles"] = max(limits, default=1)
        smallest = changes.get("min_tiles", self.min_tiles)
        if isinstance(smallest, Integral) and not isinstance(smallest, bool):  # all else is refused below
            changes["min_tiles"] = min(smallest, max(changes["max_tiles"], 1))
        return _settings(current, changes), limits

    def _open_all(
        self, images: Sequence[Any], reader: MediaReader, input_data_format: str | None
    ) -> list[Image.Image]:
        """Open the images of a call; what can be refused is refused before the first is opened."""
        check_images(images, reader)
        return [
            open_picture(image, f"images[{index}]", input_data_format, reader) for index, image in enumerate(images)
        ]

    def _upright_sizes(self, images: Sequence[Any], reader: MediaReader, **kwargs: Any) -> list[tuple[int, int]]:
        """Return the sizes (width, height) of images, or of what is a size already."""
        is_turned = kwargs.get("apply_exif_orientation")
        is_turned = self.apply_exif_orientation if is_turned is None else is_turned
        names = ["image" if len(images) == 1 else f"images[{index}]" for index in range(len(images))]
        is_plain = [isinstance(image, (tuple, list)) for image in images]
        for image, name, plain in zip(images, names, is_plain, strict=True):
            checked_size(image) if plain else check_image(image, name, reader)
        return [
            checked_size(image)
            if plain
            else picture_size(open_picture(image, name, kwargs.get("input_data_format"), reader), is_turned)
            for image, name, plain in zip(images, names, is_plain, strict=True)
        ]

    def _plan_prompts(
        self,
        settings: ImageSettings,
        sizes: Sequence[tuple[int, int]],
        limits: Sequence[int],
        group_sizes: Sequence[int],
    ) -> list[TilePlan]:
        """Plan the images of several prompts, whose numbers of images are `group_sizes`."""
        plans = []
        for count in group_sizes:
            start = len(plans)
            plans += plan_together(
                sizes[start : start + count],
                limits[start : start + count],
                total_max_tiles=settings.total_max_tiles,
                min_tiles=settings.min_tiles,
                use_thumbnail=settings.use_thumbnail,
                tile_size=settings.tile_size,
            )
        most, num_tiles = self.media_policy.max_tiles_per_call, sum(plan.num_tiles for plan in plans)
        if most is not None and num_tiles > most:
            raise MediaRefusedError(
                f"The images have {num_tiles} tiles, and media_policy allows {most} a call (max_tiles_per_call): give "
                "fewer images, or set total_max_tiles."
            )
        return plans

    def _limit(self, wanted: int | None) -> int:
        """Return the limit of an image for which `wanted` was said."""
        if not isinstance(wanted, (Integral, type(None))) or isinstance(wanted, bool):
            raise ValueError(f"max_tiles is {wanted!r} for an image, expected a whole number, or None.")
        return self.max_tiles if wanted is None else int(wanted)

    def _limit_of_resolution(self, wanted: str | None) -> int:
        """Turn a resolution into a number of tiles."""
        if wanted is not None and wanted not in RESOLUTIONS:
            raise ValueError(f"resolution is {wanted!r}, expected 'low' (one tile), 'high' (40) or 'auto'.")
        return {"low": 1, "high": max(self.max_tiles, HIGH_RESOLUTION_TILES)}.get(wanted, self.max_tiles)


def _by_prompt(images: Any) -> list[list[Any]]:
    """Group images by prompt: one group for each list of a nested list, else a single one."""
    if isinstance(images, (list, tuple)) and images and all(isinstance(group, (list, tuple)) for group in images):
        return [flatten_images(group) for group in images]
    return [flatten_images(images)]


def _for_each(name: str, value: Any, num_images: int) -> list[Any]:
    """Repeat a setting for every image, unless it is a list, which may be nested as the images are."""
    if not isinstance(value, (list, tuple)):
        return [value] * num_images
    values = flatten_images(value)
    if len(values) != num_images:
        raise ValueError(
            f"{name} has {len(values)} values, {values}, for {num_images} images: "
            "give one for each image, None where the processor's own applies, or a single one for all."
        )
    return values


def _prepared(picture: Image.Image, name: str, settings: ImageSettings) -> Image.Image:
    """Decode an image and make it the RGB image of which tiles are cut."""
    rgb = to_rgb(
        picture,
        name,
        apply_exif_orientation=settings.apply_exif_orientation,
        composite_alpha=settings.composite_alpha,
        rescale_depth=settings.rescale_depth,
    )
    return pad_to_square(rgb, settings.image_mean) if settings.pad2square else rgb


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """Read a floating point type or its name; float32 if there is none."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype or torch.float32
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}, expected a floating point type such as torch.bfloat16 or 'bfloat16'.")
    return found


def _settings(current: dict[str, Any], changes: dict[str, Any]) -> ImageSettings:
    """Apply changes, under any of their names, to current settings. None leaves a setting as it is."""
    changes = _own_names(changes)
    if unknown := changes.keys() - {field.name for field in fields(ImageSettings)}:
        raise _unknown_settings(unknown)
    return ImageSettings(**current | changes)


def _unknown_settings(names: Iterable[str]) -> TypeError:
    known = ", ".join(field.name for field in fields(ImageSettings))
    return TypeError(f"Unknown image settings {sorted(names)}, expected some of {known}: check the spelling.")


def _own_names(changes: dict[str, Any]) -> dict[str, Any]:
    """Rename what has another name in Transformers' own processor, and drop what says nothing."""
    changes = {name: value for name, value in changes.items() if value is not None}
    for name, value in FIXED_VALUES.items():
        if changes.pop(name, value) != value:
            raise ValueError(f"{name} is always {value} for InternVL's tiles: leave it out.")
    cuts = [changes.pop(name) for name in CUTTING_NAMES if name in changes]
    if not all(cuts):
        changes = {name: value for name, value in changes.items() if OTHER_NAMES.get(name, name) not in ONE_TILE}
        changes |= ONE_TILE
    renamed: dict[str, Any] = {}
    for name, value in changes.items():
        own = OTHER_NAMES.get(name, name)
        if renamed.setdefault(own, value) is not value and renamed[own] != value:
            raise ValueError(f"{own} is {renamed[own]} under one name and {value} as {name}: give it once.")
    return renamed


def _side(size: int | dict[str, int]) -> int:
    """Read the tile size from the `size` of a CLIP-style config: 448, {"height": 448, ...}, {"shortest_edge": 448}."""
    sides = set(size.values()) if isinstance(size, dict) else {size}
    if len(sides) != 1:
        raise ValueError(f"size is {size}, expected a square: set tile_size to the side of the model's tiles.")
    return sides.pop()


__all__ = ["InternVLImageProcessor"]
