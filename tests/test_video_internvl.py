"""Videos of every kind, and which frames of them are taken."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from internvl_chat import video_internvl
from internvl_chat.video_internvl import frames_of, is_clip, sample_frames
from PIL import Image


COLOURS = ("red", "lime", "blue", "white", "black", "yellow", "cyan", "magenta", "gray", "orange")
FRAMES = [Image.new("RGB", (32, 16), colour) for colour in COLOURS]


def colours(frames):
    """Which colour is closest to the middle of each frame; video formats keep colours only roughly."""
    known = np.array([frame.getpixel((0, 0)) for frame in FRAMES])
    found = [np.array(frame.convert("RGB").getpixel((frame.width // 2, frame.height // 2))) for frame in frames]
    return [COLOURS[np.abs(known - pixel).sum(axis=1).argmin()] for pixel in found]


@pytest.fixture(scope="module")
def animation():
    file = io.BytesIO()
    FRAMES[0].save(file, "GIF", save_all=True, append_images=FRAMES[1:], duration=40)
    return file.getvalue()


@pytest.fixture(scope="module")
def video():
    """Ten frames in a real video format."""
    av = pytest.importorskip("av", reason="PyAV reads video files, and is optional")
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuvj420p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()


def official_indices(total, num_frames):
    """The official examples' arithmetic restated, in floats."""
    part = float(total - 1) / num_frames
    return [int((part / 2) + np.round(part * index)) for index in range(num_frames)]


def test_sampling_is_the_official_one():
    for total in range(2, 60):
        for num_frames in range(1, total):
            assert sample_frames(total, num_frames) == official_indices(total, num_frames)
    assert sample_frames(100, 4) == [12, 37, 62, 86]


def test_short_videos_give_each_frame_once():
    assert sample_frames(3, 8) == [0, 1, 2]
    assert sample_frames(0, 8) == []


def test_frames_that_are_there_already():
    assert frames_of(FRAMES, "v") == FRAMES
    assert frames_of(FRAMES, "v", 2) == [FRAMES[2], FRAMES[6]]
    assert frames_of(["a.png", "b.png"], "v", 1) == ["a.png"]
    stack = np.stack([np.asarray(frame) for frame in FRAMES])
    for array in (stack, torch.from_numpy(stack)):
        frames = frames_of(array, "v", 2)
        assert [np.array_equal(frame, stack[index]) for frame, index in zip(frames, (2, 6), strict=True)] == [True] * 2


def test_animations_need_no_package(animation, tmp_path, monkeypatch):
    monkeypatch.setattr(video_internvl.importlib, "import_module", None)
    path = tmp_path / "clip.gif"
    path.write_bytes(animation)
    data = f"data:image/gif;base64,{base64.b64encode(animation).decode()}"
    for source in (animation, path, str(path), path.as_uri(), data, io.BytesIO(animation).getbuffer()):
        assert colours(frames_of(source, "v", 3)) == ["lime", "black", "magenta"]
    assert len(frames_of(animation, "v")) == 8
    assert len(frames_of(Image.open(path), "v")) == 10


def test_video_files(video, tmp_path):
    path = tmp_path / "clip.avi"
    path.write_bytes(video)
    for source in (video, path, path.as_uri()):
        assert colours(frames_of(source, "v", 3)) == ["lime", "black", "magenta"]
    assert colours(frames_of(video, "v", 20)) == list(COLOURS)
    assert len(frames_of(video, "v")) == 8


def test_files_that_are_no_videos(video):
    with pytest.raises(ValueError, match="v cannot be decoded as a video .*: check that the file is complete"):
        frames_of(b"no video", "v")
    with pytest.raises(ValueError, match="v "):
        frames_of(video[:300], "v")


def test_pyav_is_named_where_it_is_missing(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(video_internvl.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"v is a video file, .* `pip install av` \(the extra `video`\), or give"):
        frames_of(b"a video", "v")


def test_phones_turn_their_videos():
    picture = Image.new("RGB", (2, 1), "red")
    picture.putpixel((1, 0), (0, 0, 255))
    turned = video_internvl._upright(SimpleNamespace(to_image=lambda: picture, rotation=90))
    assert turned.size == (1, 2)
    assert turned.getpixel((0, 0)) == (0, 0, 255)  # counterclockwise: the right end goes up
    assert video_internvl._upright(SimpleNamespace(to_image=lambda: picture)) is picture


def test_what_is_one_video():
    frame = FRAMES[0]
    for one in ("a.mp4", b"data", frame, np.zeros((2, 4, 4, 3)), [frame, frame], [np.zeros((4, 4, 3))]):
        assert is_clip(one)
    for several in ([], ["a.mp4"], [[frame]], [np.zeros((2, 4, 4, 3))]):
        assert not is_clip(several)


@pytest.mark.parametrize("num_frames", [0, -1, 2.0, "4"])
def test_wrong_numbers_of_frames(num_frames):
    with pytest.raises(ValueError, match="num_frames is .*, expected a whole number of at least 1"):
        frames_of(FRAMES, "v", num_frames)


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        ([], ValueError, "v has no frames, expected at least one"),
        (np.zeros((0, 4, 4, 3)), ValueError, "v has no frames, expected at least one"),
        (np.zeros((4, 4, 3)), TypeError, r"v is of type ndarray of shape \(4, 4, 3\), expected a list of frames"),
        (3, TypeError, "v is of type int, expected a list of frames"),
        ("no/such.mp4", FileNotFoundError, "v, 'no/such.mp4', is no existing file, no URL"),
        ("file:///no/such.mp4", OSError, "v, 'file:///no/such.mp4', cannot be read"),
    ],
)
def test_wrong_videos(video, error, message):
    with pytest.raises(error, match=message):
        frames_of(video, "v")
