"""From whatever a caller calls a video to its frames: a few, evenly spaced, for the recipe "Frame1: <image>".

Lists of frames, arrays and animated pictures need nothing; for video files PyAV is asked, an optional package.
"""

import importlib
import os
from collections.abc import Sequence
from io import BytesIO
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image, UnidentifiedImageError

from .image_loading_internvl import URL_PREFIXES, read_url


# Frames taken from a file unless the caller says how many; the official examples take as many.
DEFAULT_NUM_FRAMES = 8
ANIMATIONS = ("GIF", "WEBP", "PNG")  # read by Pillow


def sample_frames(total: int, num_frames: int) -> list[int]:
    """Choose frames in the middles of `num_frames` equal parts of a video, those that the official examples choose.

    Args:
        total: Number of frames that there are.
        num_frames: Number of frames wanted, at least 1.

    Returns:
        Indices in rising order, each once: all of them where there are not more than wanted.

    Raises:
        ValueError: If `num_frames` is no positive whole number.
    """
    if not isinstance(num_frames, Integral) or num_frames < 1:
        raise ValueError(f"num_frames is {num_frames!r}, expected a whole number of at least 1.")
    if total <= num_frames:
        return list(range(total))
    part = (total - 1) / num_frames  # in floats on purpose: rounding decides where a middle lies between two frames
    return [int(part / 2 + round(part * index)) for index in range(num_frames)]


def is_clip(value: Any) -> bool:
    """Whether a value is one video: a file, an array of frames, or a list of pictures; not a list of videos."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(one, Image.Image) or getattr(one, "ndim", 4) < 4 for one in value)
    return True


def frames_of(video: Any, name: str, num_frames: int | None = None) -> list[Any]:
    """Return frames of a video.

    Args:
        video: A list of frames (of anything that the image processor reads), an array or tensor (frames, height,
            width, channels) or (frames, channels, height, width), an animated picture, or a video or animation as
            path, URL (http, https, file, data) or bytes.
        name: What error messages call the video.
        num_frames: How many frames, evenly spaced; fewer where the video has fewer. By default all of a list, array
            or picture, and 8 of a file.

    Returns:
        The frames, in order.

    Raises:
        ImportError: If a video file is given and PyAV is not installed.
        OSError: If a file or URL cannot be read.
        TypeError, ValueError: If it is no video, or has no frames.
    """
    if isinstance(video, (str, Path, bytes, bytearray, memoryview)):
        frames = _frames_of_file(_source(video, name), name, DEFAULT_NUM_FRAMES if num_frames is None else num_frames)
    elif isinstance(video, Image.Image):
        frames = _frames_of_animation(video, num_frames)
    elif isinstance(video, (list, tuple)) or getattr(video, "ndim", 0) == 4:
        frames = [video[index] for index in _indices(len(video), num_frames)]
    else:
        shape = f" of shape {tuple(video.shape)}" if hasattr(video, "shape") else ""
        raise TypeError(
            f"{name} is of type {type(video).__name__}{shape}, expected a list of frames, an array of 4 dimensions, "
            "an animated picture, or a path, URL or bytes."
        )
    if not frames:
        raise ValueError(f"{name} has no frames, expected at least one.")
    return frames


def _indices(total: int, num_frames: int | None) -> Sequence[int]:
    return range(total) if num_frames is None else sample_frames(total, num_frames)


def _source(video: str | Path | bytes, name: str) -> str | BytesIO:
    """Return the path of a file, or the bytes of anything else."""
    if isinstance(video, (str, Path)):
        path = str(video)
        if path[:8].lower().startswith(URL_PREFIXES):
            return BytesIO(read_url(path, name))
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{name}, {path[:80]!r}, is no existing file and no URL ({', '.join(URL_PREFIXES)}): check the path."
            )
        return path
    return BytesIO(bytes(video))


def _frames_of_file(source: str | BytesIO, name: str, num_frames: int) -> list[Image.Image]:
    try:
        with Image.open(source, formats=ANIMATIONS) as animation:
            return _frames_of_animation(animation, num_frames)
    except UnidentifiedImageError:
        return _decode(_pyav(name), source, name, num_frames)


def _frames_of_animation(animation: Image.Image, num_frames: int | None) -> list[Image.Image]:
    frames = []
    for index in _indices(getattr(animation, "n_frames", 1), num_frames):
        animation.seek(index)
        frames.append(animation.copy())
    return frames


def _pyav(name: str) -> ModuleType:
    """Import PyAV; by its name as text, since Transformers takes every import that it can see for a requirement."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ImportError(
            f"{name} is a video file, and reading those takes PyAV: `pip install av` (the extra `video`), "
            "or give the frames as a list of pictures."
        ) from error


def _decode(av: ModuleType, source: str | BytesIO, name: str, num_frames: int) -> list[Image.Image]:
    """Decode a file up to the last frame wanted. No seeking: it is not exact in every format."""
    try:
        with av.open(_rewound(source)) as container:
            if not container.streams.video:
                raise ValueError(f"{name} holds no video: check the file.")
            # What the header says is missing in some formats and wrong in some files.
            total = sum(packet.size > 0 for packet in container.demux(video=0))
        wanted = sample_frames(total, num_frames)
        frames = []
        with av.open(_rewound(source)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames.append(_upright(frame))
                if index == wanted[-1]:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"{name} cannot be decoded as a video ({error}): check that the file is complete.") from error
    return frames


def _rewound(source: str | BytesIO) -> str | BytesIO:
    if isinstance(source, BytesIO):
        source.seek(0)
    return source


def _upright(frame: Any) -> Image.Image:
    """Turn a frame as the file says, as phones do; counterclockwise, in degrees."""
    picture = frame.to_image()
    rotation = getattr(frame, "rotation", 0)  # PyAV before 14 does not tell
    return picture.rotate(rotation, expand=True) if rotation else picture
