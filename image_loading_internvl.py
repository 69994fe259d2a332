"""From whatever a caller calls an image to an upright, opaque RGB picture with 8 bits per channel.

Paths, URLs, base64, bytes, arrays, tensors and PIL images of every mode come in; PIL images of mode RGB go out. Tiles,
sizes and normalisation are the image processor's. Transformers' own `load_image` is not used: it turns pictures to RGB
at once, which uncovers the colours hidden under transparency and clips 16-bit pictures to white.
"""

import base64
import binascii
import os
import struct
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers.utils import logging


logger = logging.get_logger(__name__)

URL_PREFIXES = ("http://", "https://", "file:", "data:")
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer, so that a dead server cannot stall a batch for ever

# What Pillow's decoders raise on damaged files.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error)


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


def open_picture(image: Any, name: str, input_data_format: str | None = None) -> Image.Image:
    """Open an image as a PIL picture, reading no more than the header of encoded ones.

    A string is a path, a URL (http, https, file, data) or base64 and is read wherever it points: do not pass on the
    strings of people who may not read your files.

    Args:
        image: PIL image, path, URL, base64 text, encoded bytes, or an array or tensor: (height, width), or 1, 3 or 4
            channels first or last; uint8, uint16 over its whole range, or float in [0, 1].
        name: What error messages call the image.
        input_data_format: "channels_first" or "channels_last", for arrays and tensors. By default the axis that has
            1, 3 or 4 entries; if both have, the last one of an array and the first one of a tensor.

    Returns:
        The picture in its own mode, its pixels perhaps not decoded yet.

    Raises:
        OSError: If a URL cannot be read; FileNotFoundError if a string or path names nothing at all, and Pillow's
            UnidentifiedImageError if there are bytes, but no picture.
        TypeError: If the image is of another type.
        ValueError: If the picture is too large, or if the shape, type or values of an array do not make one.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, Path)):
        return _open_named(str(image), name)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _open_encoded(bytes(image), name)
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _from_array(image, name, input_data_format)
    raise TypeError(
        f"{name} is of type {type(image).__name__}, expected a PIL image, a path, a URL, base64 text, bytes, "
        "a NumPy array or a torch tensor: convert it to one of these."
    )


def read_url(source: str, name: str) -> bytes:
    """Read what a URL (http, https, file, data) points to; `name` is what error messages call it.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        with urlopen(Request(source, headers={"User-Agent": "Mozilla/5.0"}), timeout=DOWNLOAD_TIMEOUT) as answer:
            return answer.read()
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"{name}, {_shortened(source)!r}, cannot be read ({error}): check the URL.") from error


def picture_size(picture: Image.Image, apply_exif_orientation: bool) -> tuple[int, int]:
    """Return the size (width, height) in pixels that the picture has once it is upright, without decoding it."""
    width, height = picture.size
    # Orientations 5 to 8 are quarter turns.
    return (height, width) if apply_exif_orientation and _orientation(picture) > 4 else (width, height)


def to_rgb(
    picture: Image.Image, name: str, *, apply_exif_orientation: bool, composite_alpha: bool, rescale_depth: bool
) -> Image.Image:
    """Decode a picture and make it upright, opaque and RGB with 8 bits per channel.

    Args:
        picture: Picture of any mode; left as it is. Of an animation, the current frame.
        name: What error messages call the picture.
        apply_exif_orientation: Turn the picture as its EXIF data say.
        composite_alpha: Put transparent pictures on white; otherwise the alpha channel is dropped and whatever colours
            it hid appear.
        rescale_depth: Scale pictures of more than 8 bits by their range: 16-bit ones (modes I;16 and I) from 0..65535,
            float ones (mode F) from 0..1; values beyond are refused. Otherwise everything above 255 is clipped.

    Returns:
        Picture of mode RGB; the given one itself if there was nothing to do.

    Raises:
        ValueError: If the file is damaged, or if samples of more than 8 bits lie outside their range.
    """
    try:
        picture.load()
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{name} is damaged and cannot be decoded ({error}): fetch the file again, or set "
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True to accept the part that is there."
        ) from error
    if apply_exif_orientation and _orientation(picture) != 1:
        picture = ImageOps.exif_transpose(picture)
    if rescale_depth and picture.mode[0] in "IF":
        picture = Image.fromarray(_deep_samples_to_uint8(picture, name))
    if composite_alpha and ("transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "RGBa")):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _open_named(source: str, name: str) -> Image.Image:
    """Open what a path, a URL or base64 text stands for."""
    if source[:8].lower().startswith(URL_PREFIXES):
        return _open_encoded(read_url(source, name), name)
    if os.path.isfile(source):  # unlike Path.is_file, it takes base64 too long for a path calmly
        return _open_encoded(Path(source).read_bytes(), name)
    try:
        return _open_encoded(source.encode(errors="replace"), name)
    except UnidentifiedImageError as error:
        raise FileNotFoundError(
            f"{name}, {_shortened(source)!r}, is no existing file, no URL ({', '.join(URL_PREFIXES)}) and no picture "
            "in base64: check the path, relative ones start at the current folder."
        ) from error


def _shortened(source: str) -> str:
    return source if len(source) <= 80 else f"{source[:77]}..."


def _decode_base64(text: bytes) -> bytes | None:
    """Decode base64 text that may be broken into lines; None if it is something else."""
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        return None


def _open_encoded(data: bytes, name: str) -> Image.Image:
    """Open the bytes of a picture file, or base64 text of them, without decoding the pixels."""
    try:
        return Image.open(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large to be decoded safely ({error}): make it smaller, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust its source."
        ) from error
    except DECODING_ERRORS as error:
        decoded = _decode_base64(data)
        if decoded:
            return _open_encoded(decoded, name)
        raise UnidentifiedImageError(
            f"{name} holds {len(data)} bytes that are no picture Pillow can read: check that the file is complete and "
            "an image, and install the Pillow plugin of its format if it has one (pillow-heif for HEIC)."
        ) from error


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 if there is none or if the EXIF data are broken."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODING_ERRORS as error:
        logger.warning(f"The EXIF data of a picture cannot be read ({error}); it is taken to be upright.")
        return 1
    return orientation if orientation in range(1, 9) else 1


def _from_array(image: np.ndarray | torch.Tensor, name: str, input_data_format: str | None) -> Image.Image:
    """Make a picture of mode L, RGB or RGBA from an array or a tensor."""
    samples = image
    if isinstance(image, torch.Tensor):
        samples = image.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()  # NumPy has no bfloat16
    if samples.ndim == 3:
        samples = np.moveaxis(samples, _channel_axis(image, name, input_data_format), -1)  # (height, width, channels)
    elif samples.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(samples.shape)}, expected (height, width), (height, width, channels) or "
            "(channels, height, width): pass one image at a time or a list of them."
        )
    if samples.size == 0:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}, expected at least one pixel: leave empty images out."
        )
    samples = _to_uint8(samples, name)
    return Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2:] == (1,) else samples))


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


def _to_uint8(samples: np.ndarray, name: str) -> np.ndarray:
    """Scale samples to 0..255 by the range of their type: uint8, uint16, or float in [0, 1]."""
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype.kind == "u" and samples.dtype.itemsize == 2:
        return ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)  # rounded to the nearest
    if samples.dtype.kind != "f":
        raise ValueError(
            f"{name} has dtype {samples.dtype}, expected uint8 (0 to 255), uint16 (0 to 65535) or float (0 to 1): "
            "convert it, for example with .astype('uint8') if its values lie in 0 to 255."
        )
    low, high = samples.min(), samples.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values: replace them, for example with numpy.nan_to_num.")
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} is float with values from {low:.6g} to {high:.6g}, expected 0 to 1: divide by 255 if they are "
            "8-bit values, undo any normalisation, or map the range you want to see to 0 to 1."
        )
    return np.rint(np.multiply(samples, 255, dtype=np.float32)).astype(np.uint8)


def _deep_samples_to_uint8(picture: Image.Image, name: str) -> np.ndarray:
    """Scale the samples (height, width) of a 16-bit, 32-bit or float gray picture to 0..255."""
    samples = np.asarray(picture)
    if picture.mode == "I":  # older Pillow opens 16-bit PNG files in this mode
        low, high = samples.min(initial=0), samples.max(initial=0)
        if low < 0 or high > 65535:
            raise ValueError(
                f"{name} has 32-bit samples from {low} to {high}, expected 0 to 65535: "
                "map the range you want to see to 8 bits first."
            )
        samples = samples.astype(np.uint16)
    return _to_uint8(samples, name)
