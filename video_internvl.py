"""From whatever a caller calls a video to its frames: a few, evenly spaced, for the recipe "Frame1: <image>".

Lists of frames, arrays and animated pictures need nothing; for video files PyAV is asked, an optional package.
"""

import importlib
import os
from collections.abc import Sequence
from numbers import Integral
from types import ModuleType
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from .media_internvl import MediaReader, MediaRefusedError


# Frames taken from a file unless the caller says how many; the official examples take as many.
DEFAULT_NUM_FRAMES = 8
ANIMATIONS = ("GIF", "WEBP", "PNG")  # read by Pillow
# FFmpeg's names of the containers that are opened: files that hold a video, never lists of other files or URLs.
CONTAINERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,m4v,h264,hevc,mjpeg,ivf,av1,obu,nut,mxf,dv,rm,gif"
)


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
    if not isinstance(num_frames, Integral) or isinstance(num_frames, bool) or num_frames < 1:
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


def check_videos(videos: Sequence[Any], reader: MediaReader) -> None:
    """Refuse the videos of a call that can be refused before the first of them is opened.

    Raises:
        TypeError, ValueError, OSError: As `frames_of`.
    """
    for index, video in enumerate(videos):
        source = getattr(video, "source", video)
        if _is_file(source):
            reader.check(source, f"videos[{index}]")


def _is_file(video: Any) -> bool:
    known = (str, bytes, bytearray, memoryview, os.PathLike, dict)
    return isinstance(video, known) or hasattr(video, "read")


def frames_of(video: Any, name: str, num_frames: int | None = None, reader: MediaReader | None = None) -> list[Any]:
    """Return frames of a video.

    Args:
        video: A list of frames (of anything that the image processor reads), an array or tensor (frames, height,
            width, channels) or (frames, channels, height, width), an animated picture, or a video or animation as
            path, URL (http, https, file, data), bytes, binary file object, or dict with `bytes` or `path`.
        name: What error messages call the video.
        num_frames: How many frames, evenly spaced; fewer where the video has fewer. By default all of a list, array
            or picture, and 8 of a file.
        reader: Reads within the policy of the call; by default any path and URL is read.

    Returns:
        The frames, in order.

    Raises:
        ImportError: If a video file is given and PyAV is not installed.
        OSError: If a file or URL cannot be read.
        TypeError, ValueError: If it is no video, or has no frames.
    """
    reader = reader or MediaReader()
    if isinstance(video, Image.Image):
        frames = _frames_of_animation(video, name, num_frames, reader)
    elif _is_file(video):
        with reader.open(video, name) as file:
            frames = _frames_of_file(file, name, DEFAULT_NUM_FRAMES if num_frames is None else num_frames, reader)
    elif isinstance(video, (list, tuple)) or getattr(video, "ndim", 0) == 4:
        frames = [video[index] for index in _indices(len(video), num_frames, reader)]
    else:
        shape = f" of shape {tuple(video.shape)}" if hasattr(video, "shape") else ""
        raise TypeError(
            f"{name} is of type {type(video).__name__}{shape}, expected a list of frames, an array of 4 dimensions, "
            "an animated picture, or a path, URL or bytes."
        )
    if not frames:
        raise ValueError(f"{name} has no frames, expected at least one.")
    return frames


def _indices(total: int, num_frames: int | None, reader: MediaReader) -> Sequence[int]:
    """Choose frames, and count them before the first is decoded."""
    indices = range(total) if num_frames is None else sample_frames(total, num_frames)
    reader.count_images(len(indices))
    return indices


def _frames_of_file(file: BinaryIO, name: str, num_frames: int, reader: MediaReader) -> list[Image.Image]:
    try:
        animation = Image.open(file, formats=ANIMATIONS)
    except UnidentifiedImageError:
        return _decode(_pyav(name), file, name, num_frames, reader)
    except Exception as error:  # decoders raise whatever damage makes of them
        raise _damaged(name, error) from error
    return _frames_of_animation(animation, name, num_frames, reader)


def _frames_of_animation(
    animation: Image.Image, name: str, num_frames: int | None, reader: MediaReader
) -> list[Image.Image]:
    frames = []
    try:
        total = animation.n_frames if getattr(animation, "is_animated", False) else 1
        for index in _indices(total, num_frames, reader):
            reader.check_time(name)
            reader.count_pixels(animation.width * animation.height, name)
            animation.seek(index)
            frames.append(animation.copy())
            frames[-1].counted_by = reader
    except PermissionError:  # of the policy; its class may be that of another copy of media_internvl.py
        raise
    except Exception as error:  # decoders raise whatever damage makes of them
        raise _damaged(name, error) from error
    return frames


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} cannot be decoded as a video ({error}): check that the file is complete.")


def _pyav(name: str) -> ModuleType:
    """Import PyAV; by its name as text, since Transformers takes every import that it can see for a requirement."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ImportError(
            f"{name} is a video file, and reading those takes PyAV: `pip install av` (the extra `video`), "
            "or give the frames as a list of pictures."
        ) from error


def _decode(av: ModuleType, file: BinaryIO, name: str, num_frames: int, reader: MediaReader) -> list[Image.Image]:
    """Decode a file up to the last frame wanted. No seeking: it is not exact in every format."""
    try:
        with _container(av, file) as container:
            if not container.streams.video:
                raise ValueError(f"{name} holds no video: check the file.")
            # What the header says is missing in some formats and wrong in some files.
            total = sum(packet.size > 0 for packet in container.demux(video=0))
        wanted = _indices(total, num_frames, reader)
        frames = []
        with _container(av, file) as container:
            for index, frame in enumerate(container.decode(video=0)):
                reader.check_time(name)
                if index in wanted:
                    reader.count_pixels(frame.width * frame.height, name)
                    frames.append(_upright(frame))
                    frames[-1].counted_by = reader
                if index == wanted[-1]:
                    break
    except av.FFmpegError as error:
        raise _damaged(name, error) from error
    return frames


def _container(av: ModuleType, file: BinaryIO) -> Any:
    """Open a video from its start, and nothing that it names: playlists and other protocols are closed."""
    file.seek(0)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    return av.open(file, options=options, io_open=_open_nothing)


def _open_nothing(url: str, flags: int, options: dict[str, Any]) -> BinaryIO:
    raise MediaRefusedError(
        "A video names another file or URL, which is not opened: give a file that holds the video."
    )


def _upright(frame: Any) -> Image.Image:
    """Turn a frame as the file says, as phones do; counterclockwise, in degrees."""
    picture = frame.to_image()
    rotation = getattr(frame, "rotation", 0)  # PyAV before 14 does not tell
    return picture.rotate(rotation, expand=True) if rotation else picture
