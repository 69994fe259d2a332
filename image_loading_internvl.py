"""From whatever a caller calls an image to an upright, opaque RGB image with 8 bits per channel.

Encoded images, arrays, tensors and PIL images of every mode come in; PIL images of mode RGB go out. Reading paths,
URLs and bytes is the job of `media_internvl.py`; tiles, sizes and normalisation are the image processor's.
Transformers' own `load_image` is not used: it turns images to RGB at once, which uncovers the colours hidden under
transparency and clips 16-bit images to white.

Pixels are converted in strips of rows, so that beside an image and its RGB form no third copy is needed.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from transformers.utils import logging

from .media_internvl import ANY, MediaReader, decode_base64


logger = logging.get_logger(__name__)

STRIP_PIXELS = 1 << 18  # pixels converted at once
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG file that say how large it is and how it is turned.
PNG_METADATA = (b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
# How to make an image upright, by its EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def flatten_images(images: Any) -> list[Any]:
    """Flatten one image, a list, nested lists (one per sample) or a 4-dimensional batch, keeping the order.

    Args:
        images: What the caller passed as images.

    Returns:
        Single images in the order in which they were met.
    """
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten_images(item)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def check_images(images: Sequence[Any], reader: MediaReader) -> None:
    """Refuse the images of a call that can be refused before the first of them is opened.

    Raises:
        TypeError, ValueError, OSError: As `open_picture`.
    """
    for index, image in enumerate(images):
        check_image(image, f"images[{index}]", reader)


def check_image(image: Any, name: str, reader: MediaReader) -> None:
    """Refuse an image that can be refused before it is opened, see `check_images`."""
    if not isinstance(image, (Image.Image, np.ndarray, torch.Tensor)):
        _check_type(image, name)
        reader.check(image, name)


def open_picture(
    image: Any, name: str, input_data_format: str | None = None, reader: MediaReader | None = None
) -> Image.Image:
    """Open an image as a PIL image, reading no more than the header of encoded ones.

    Args:
        image: PIL image, path, URL, base64 text, encoded bytes, binary file object, dict with `bytes` or `path` as in
            cells of data sets, or an array or tensor: (height, width), or 1, 3 or 4 channels first or last; uint8,
            uint16 over its whole range, or float in [0, 1].
        name: What error messages call the image.
        input_data_format: "channels_first" or "channels_last", for arrays and tensors. By default the axis that has
            1, 3 or 4 entries; if both have, the last one of an array and the first one of a tensor.
        reader: Reads within the policy of the call. By default any path and URL is read: do not pass on the strings
            of people who may not read your files.

    Returns:
        The image in its own mode, its pixels perhaps not decoded yet.

    Raises:
        OSError: If a URL cannot be read; FileNotFoundError if a string or path names nothing at all, and Pillow's
            UnidentifiedImageError if there are bytes, but no image.
        TypeError: If the image is of another type.
        ValueError: If the image is too large, or if the shape, type or values of an array do not make one.
    """
    reader = reader or MediaReader()
    if isinstance(image, (np.ndarray, torch.Tensor)):
        picture = _from_array(image, name, input_data_format, reader)
    elif isinstance(image, Image.Image):
        picture = image
    else:
        _check_type(image, name)
        data = reader.read(image, name)
        try:
            picture = _open_encoded(data, name, reader)
        except UnidentifiedImageError as error:
            if reader.is_text(image):
                raise reader.unknown_text(image, name) from error
            raise
    is_counted = isinstance(image, (np.ndarray, torch.Tensor)) or getattr(picture, "counted_by", None) is reader
    if not is_counted:  # as arrays and the frames of a video are
        reader.count_pixels(picture.width * picture.height, name)
    return picture


def picture_size(picture: Image.Image, apply_exif_orientation: bool) -> tuple[int, int]:
    """Return the size (width, height) in pixels that the image has once it is upright, without decoding it."""
    width, height = picture.size
    tags = getattr(picture, "tag_v2", {})
    if _is_waiting(picture) and ExifTags.Base.Orientation in tags:
        # Pillow turns TIFF files as it decodes them; the size that it says before depends on its release.
        width, height = tags.get(ExifTags.Base.ImageWidth, width), tags.get(ExifTags.Base.ImageLength, height)
        return (height, width) if tags[ExifTags.Base.Orientation] in (5, 6, 7, 8) else (width, height)
    # Orientations 5 to 8 are quarter turns.
    return (height, width) if apply_exif_orientation and _orientation(picture) > 4 else (width, height)


def to_rgb(
    picture: Image.Image, name: str, *, apply_exif_orientation: bool, composite_alpha: bool, rescale_depth: bool
) -> Image.Image:
    """Decode an image and make it upright, opaque and RGB with 8 bits per channel.

    Args:
        picture: Image of any mode; left as it is. Of an animation, the current frame.
        name: What error messages call the image.
        apply_exif_orientation: Turn the image as its EXIF data say.
        composite_alpha: Put transparent images on white; otherwise the alpha channel is dropped and whatever colours
            it hid appear.
        rescale_depth: Scale images of more than 8 bits by their range: 16-bit ones (modes I;16 and I) from 0..65535,
            float ones (mode F) from 0..1; values beyond are refused. Otherwise everything above 255 is clipped.

    Returns:
        Image of mode RGB; the given one itself if there was nothing to do.

    Raises:
        ValueError: If the file is damaged, or if samples of more than 8 bits lie outside their range.
    """
    size = picture_size(picture, apply_exif_orientation)
    picture = _decoded(picture, name)
    turn = TURNS.get(_orientation(picture)) if apply_exif_orientation else None
    if picture_size(picture, apply_exif_orientation) != size:
        raise ValueError(
            f"{name} is {picture.size} pixels, but its header says {size}: the file is damaged, save it anew."
        )
    is_deep = rescale_depth and picture.mode[0] in "IF"
    if is_deep:
        _check_depth(picture, name)
    is_clear = "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "RGBa")
    if is_deep or (composite_alpha and is_clear) or picture.mode != "RGB":
        convert = partial(_strip_to_rgb, is_deep=is_deep, on_white=composite_alpha and is_clear and not is_deep)
    elif turn is None:
        return picture
    else:
        convert = Image.Image.copy
    try:
        return _by_strips(picture, convert, turn, size)
    except ValueError as error:
        raise ValueError(f"{name} of mode {picture.mode} cannot be converted to RGB ({error}): convert it.") from error


def _check_type(image: Any, name: str) -> None:
    known = (str, os.PathLike, bytes, bytearray, memoryview)
    is_cell = isinstance(image, dict) and image and image.keys() <= {"bytes", "path"}
    if not (isinstance(image, known) or is_cell or hasattr(image, "read")):
        raise TypeError(
            f"{name} is of type {type(image).__name__}, expected a PIL image, a path, a URL, base64 text, bytes, "
            "a binary file, a NumPy array or a torch tensor: convert it to one of these."
        )


def _open_encoded(data: bytes, name: str, reader: MediaReader) -> Image.Image:
    """Open the bytes of an image file, or base64 text of them, without decoding the pixels."""
    file = BytesIO(data)
    try:
        picture = Image.open(file, formats=_formats(reader))
        picture.encoded = file
        return picture
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large to be decoded safely ({error}): make it smaller, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust its source."
        ) from error
    except Exception as error:  # decoders raise whatever damage makes of them
        decoded = decode_base64(data)
        if decoded:
            return _open_encoded(decoded, name, reader)
        raise UnidentifiedImageError(
            f"{name} holds {len(data)} bytes that are no image Pillow can read: check that the file is complete and "
            "an image, and install the Pillow plugin of its format if it has one (pillow-heif for HEIC)."
        ) from error


def _formats(reader: MediaReader) -> list[str] | None:
    """Return the formats that a policy allows and Pillow knows; None for all."""
    wanted = reader.policy.allowed_image_formats
    if ANY in wanted:
        return None
    Image.init()
    return [one for one in wanted if one in Image.OPEN]


def _is_waiting(picture: Image.Image) -> bool:
    """Whether an image of a file is still to be decoded."""
    return bool(getattr(picture, "tile", None))


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    """Decode an image as strictly as Pillow does, however often it was tried before."""
    given = picture
    try:
        if _is_waiting(picture) and vars(picture).get("_im", vars(picture).get("im")) is not None:
            # A frame of an animation, or an attempt that failed: a second one might take half an image for a whole.
            picture = _reopened(picture)
        picture.load()
        if hasattr(picture, "encoded") and not getattr(picture, "is_animated", False):
            picture.encoded.close()  # this package's own; Pillow holds on to the bytes of some formats
    except Exception as error:  # decoders raise whatever damage makes of them
        # Pillow leaves the part that it could decode as if it were the image; now it refuses it itself.
        given.tile = given.im = None
        raise ValueError(
            f"{name} is damaged and cannot be decoded ({error}): fetch the file again, or set "
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True to accept the part that is there."
        ) from error
    return picture


def _reopened(picture: ImageFile.ImageFile) -> Image.Image:
    """Open the file of an image anew, at the same frame; the image itself keeps its position in the file."""
    file, frame = picture.fp, picture.tell()
    if file is None or not file.seekable():
        return picture
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    fresh = Image.open(BytesIO(data), formats=[picture.format])
    fresh.seek(frame)
    return fresh


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8, without decoding; 1 if there is none or its data are broken."""
    if ExifTags.Base.Orientation in getattr(picture, "tag_v2", {}):
        return 1  # Pillow turns TIFF files itself
    try:
        if isinstance(picture, PngImagePlugin.PngImageFile) and _is_waiting(picture) and "exif" not in picture.info:
            picture = _png_metadata(picture.fp)  # Pillow would decode the image, to find what follows its pixels
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # noqa: BLE001 (whatever broken data make of Pillow's reader; the pixels are still good)
        logger.warning(f"The EXIF data of an image cannot be read ({error}); it is taken to be upright.")
        return 1
    return orientation if orientation in range(1, 9) else 1


def _png_metadata(file: BinaryIO) -> Image.Image:
    """Open what a PNG file says about its image as an image without pixels; the position in the file stays."""
    position, chunks = file.tell(), [PNG_SIGNATURE]
    file.seek(len(PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind not in PNG_METADATA:
            file.seek(size + 4, os.SEEK_CUR)
            continue
        data = file.read(size)
        chunks += [head, data, struct.pack(">I", zlib.crc32(kind + data))]
        file.seek(4, os.SEEK_CUR)
    file.seek(position)
    end = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    metadata = Image.open(BytesIO(b"".join([*chunks, end])), formats=["PNG"])
    metadata.tile = []
    metadata.load = lambda: None  # there is nothing to decode
    return metadata


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Cut an image of this size (width, height) into strips of whole rows (top, bottom)."""
    width, height = size
    rows = max(1, STRIP_PIXELS // max(width, 1))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _by_strips(
    picture: Image.Image,
    convert: Callable[[Image.Image], Image.Image],
    turn: Image.Transpose | None,
    size: tuple[int, int],
) -> Image.Image:
    """Convert an image to RGB and turn it, one strip of rows at a time; `size` is the size of the result."""
    result = Image.new("RGB", size)
    width, height = picture.size
    for top, bottom in _strips(picture.size):
        strip = convert(picture.crop((0, top, width, bottom)))
        if turn is not None:
            strip = strip.transpose(turn)
        below = height - bottom
        corner = {
            Image.Transpose.ROTATE_180: (0, below),
            Image.Transpose.FLIP_TOP_BOTTOM: (0, below),
            Image.Transpose.TRANSPOSE: (top, 0),
            Image.Transpose.ROTATE_90: (top, 0),
            Image.Transpose.ROTATE_270: (below, 0),
            Image.Transpose.TRANSVERSE: (below, 0),
        }.get(turn, (0, top))
        result.paste(strip, corner)
    return result


def _strip_to_rgb(strip: Image.Image, *, is_deep: bool, on_white: bool) -> Image.Image:
    if is_deep:
        strip = Image.fromarray(_deep_samples_to_uint8(strip))
    if on_white:
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
    return strip.convert("RGB")


def _from_array(
    image: np.ndarray | torch.Tensor, name: str, input_data_format: str | None, reader: MediaReader
) -> Image.Image:
    """Make an image of mode L, RGB or RGBA from an array or a tensor."""
    samples = _plain_tensor(image, name) if isinstance(image, torch.Tensor) else image
    if samples.ndim == 3:
        channels = _channel_axis(image, name, input_data_format)
        axes = (1, 2, 0) if channels == 0 else (0, 1, 2)
        # (height, width, channels)
        samples = samples.permute(axes) if isinstance(samples, torch.Tensor) else samples.transpose(axes)
    elif samples.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(samples.shape)}, expected (height, width), (height, width, channels) or "
            "(channels, height, width): pass one image at a time or a list of them."
        )
    if 0 in samples.shape:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}, expected at least one pixel: leave empty images out."
        )
    height, width, *channels = samples.shape
    reader.count_pixels(width * height, name)
    _check_samples((_numpy(samples[top:bottom]) for top, bottom in _strips((width, height))), name)
    picture = Image.new({1: "L", 3: "RGB", 4: "RGBA"}[channels[0] if channels else 1], (width, height))
    for top, bottom in _strips(picture.size):
        strip = _to_uint8(_numpy(samples[top:bottom]))
        strip = np.ascontiguousarray(strip[..., 0] if channels == [1] else strip)
        picture.paste(Image.fromarray(strip), (0, top))
    return picture


def _plain_tensor(image: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor on the CPU that NumPy can read, but for its floating point type."""
    kind = "on the meta device" if image.is_meta else "quantized" if image.is_quantized else ""
    kind = "sparse" if image.layout != torch.strided else "complex" if image.is_complex() else kind
    if kind:
        raise ValueError(f"{name} is a tensor that is {kind}, expected a dense real one with values: convert it.")
    return image.detach().cpu()


def _numpy(samples: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return samples as an array; NumPy has no bfloat16, which becomes float32."""
    if isinstance(samples, torch.Tensor):
        is_half = samples.is_floating_point() and samples.dtype not in (torch.float32, torch.float64)
        return (samples.float() if is_half else samples).resolve_neg().numpy()
    return samples


def _channel_axis(image: np.ndarray | torch.Tensor, name: str, input_data_format: str | None) -> int:
    """Find the axis of the channels, 0 or 2, of an image of three dimensions."""
    channels = (1, 3, 4)
    if input_data_format is None:
        likely, other = (0, 2) if isinstance(image, torch.Tensor) else (2, 0)
        axis = likely if image.shape[likely] in channels else other
    else:
        axes = {"channels_first": 0, "channels_last": 2}
        # Transformers' own enumeration of these names is a string too.
        axis = axes.get(getattr(input_data_format, "value", input_data_format))
        if axis is None:
            raise ValueError(
                f"input_data_format is {input_data_format!r}, expected 'channels_first' or 'channels_last': "
                "leave it out to have it found."
            )
    if image.shape[axis] not in channels:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}, expected 1, 3 or 4 channels first or last: "
            "move the channels there or convert the image to RGB."
        )
    return axis


def _check_samples(strips: Iterable[np.ndarray], name: str) -> None:
    """Refuse samples of a type that says no range, or outside the range of their type."""
    low, high = np.inf, -np.inf
    for strip in strips:
        dtype = strip.dtype
        if dtype == np.uint8 or (dtype.kind == "u" and dtype.itemsize == 2):
            return
        if dtype.kind != "f":
            raise ValueError(
                f"{name} has dtype {dtype}, expected uint8 (0 to 255), uint16 (0 to 65535) or float (0 to 1): "
                "convert it, for example with .astype('uint8') if its values lie in 0 to 255."
            )
        low, high = np.minimum(low, strip.min()), np.maximum(high, strip.max())  # NaN stays NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values: replace them, for example with numpy.nan_to_num.")
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} is float with values from {low:.6g} to {high:.6g}, expected 0 to 1: divide by 255 if they are "
            "8-bit values, undo any normalisation, or map the range you want to see to 0 to 1."
        )


def _to_uint8(samples: np.ndarray) -> np.ndarray:
    """Scale samples to 0..255 by the range of their type: uint8, uint16, or float in [0, 1]."""
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype.kind == "u":
        return ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)  # rounded to the nearest
    return np.rint(np.multiply(samples, 255, dtype=np.float32)).astype(np.uint8)


def _check_depth(picture: Image.Image, name: str) -> None:
    """Refuse a 32-bit or float gray image with samples outside the range that is scaled."""
    strips = (np.asarray(picture.crop((0, top, picture.width, bottom))) for top, bottom in _strips(picture.size))
    extremes = [np.array([strip.min(), strip.max()]) for strip in strips if strip.size]
    if picture.mode == "F" and extremes:
        _check_samples(extremes, name)
    elif picture.mode == "I" and extremes:  # older Pillow opens 16-bit PNG files in this mode
        low, high = np.min(extremes), np.max(extremes)
        if low < 0 or high > 65535:
            raise ValueError(
                f"{name} has 32-bit samples from {low} to {high}, expected 0 to 65535: "
                "map the range you want to see to 8 bits first."
            )


def _deep_samples_to_uint8(strip: Image.Image) -> np.ndarray:
    """Scale the samples (height, width) of a 16-bit, 32-bit or float gray image to 0..255."""
    samples = np.asarray(strip)
    return _to_uint8(samples.astype(np.uint16) if strip.mode == "I" else samples)
