"""The policy reaches every door of the processor, and no file sets it."""

import base64
import io
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from internvl_chat.grounding_internvl import Grounding
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from internvl_chat.media_internvl import MediaPolicy, MediaRefusedError
from internvl_chat.processing_internvl import InternVLProcessor
from internvl_chat.video_internvl import frames_of
from PIL import Image
from transformers import AutoProcessor


ANSWER = {"role": "assistant", "content": "A"}
PIL_IMAGE = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))


def encoded(file_format="PNG", **options):
    file = io.BytesIO()
    PIL_IMAGE.save(file, file_format, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def inline(hub_folder):
    return AutoProcessor.from_pretrained(hub_folder, trust_remote_code=True, media_policy="inline")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    return path


def asked(source, kind="image", **settings):
    item = {"type": kind, kind: source, **settings}
    return [{"role": "user", "content": [item, {"type": "text", "text": "What is it?"}]}]


@pytest.fixture
def server(monkeypatch):
    """A local server that nobody may ask, and a resolver for which every name is the local machine."""
    asked, answer = [], socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        asked.append(host)
        return answer("127.0.0.1", port, *args, **kwargs)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield listening.getsockname()[1]
        assert asked == []
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_inline_closes_every_door(inline, path, server):
    calls = [
        lambda image: inline(images=image, text="<image>"),
        lambda image: inline(images=image),
        lambda image: inline(videos=image, text="<video>"),
        lambda image: inline.apply_chat_template(asked(image), tokenize=True, return_dict=True),
        lambda image: inline.apply_chat_template(asked(image, "video"), tokenize=True, return_dict=True),
        lambda image: inline.count_image_tokens(image),
        lambda image: inline.data_collator()([{"messages": [*asked(image), ANSWER]}]),
        lambda image: inline.image_processor.fetch_images([image]),
        lambda image: inline.image_processor.upright_size(image),
        lambda image: inline.post_process_grounding("nothing", image),
        lambda image: inline.post_process_grounding("nothing", (10, 10))[0].draw(image),
        lambda image: inline.data_collator().length(
            {"messages": [*asked(image), {"role": "assistant", "content": "A"}]}
        ),
        lambda image: inline.image_processor.plan(image),
        lambda image: inline.image_processor(image),
        lambda image: frames_of(image, "v", reader=inline.image_processor.media_reader()),
    ]
    link = path.with_name("link.png")
    link.symlink_to(path)
    hosts = ("127.0.0.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "localhost", "evil.example")
    urls = [f"http://{host}:{server}/a.png" for host in hosts]
    urls += [f"https://evil.example:{server}/a.m3u8", f"HTTP://user@evil.example:{server}/a.png"]
    paths = [str(path), path.as_uri(), f"file:{path}", f"FILE://localhost{path}", "no/such.png", link]
    paths += [f"{path.parent}/../{path.parent.name}/{path.name}", {"bytes": None, "path": str(path)}]
    for call in calls:
        for source in (*urls, *paths):
            with pytest.raises((OSError, ValueError), match="media_policy|no plain URL"):
                call(source)
    text = base64.b64encode(encoded()).decode()
    for source in (text, f"data:image/png;base64,{text}", encoded(), {"bytes": encoded(), "path": None}, PIL_IMAGE):
        assert inline.count_image_tokens([source]) == [16]


def test_no_file_sets_the_policy(hub_folder, inline, tmp_path):
    inline.save_pretrained(tmp_path / "saved")
    assert not [file for file in (tmp_path / "saved").glob("*.json") if "media_policy" in file.read_text("utf-8")]
    assert "media_policy" not in repr(inline.image_processor)
    again = AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert again.image_processor.media_policy.is_open
    folder = tmp_path / "folder"
    shutil.copytree(hub_folder, folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        config = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**config, "media_policy": "local"}), "utf-8")
        if name == "processor_config.json":
            loaded = AutoProcessor.from_pretrained(folder, trust_remote_code=True, media_policy="inline")
            assert not loaded.image_processor.media_policy.is_open
    with pytest.raises(ValueError, match="names a media_policy, which a file must not set: remove it"):
        AutoProcessor.from_pretrained(folder, trust_remote_code=True, media_policy="inline")


def test_a_message_does_not_exceed_the_ceilings():
    processor = InternVLImageProcessor(tile_size=14)
    assert processor.item_limit({"max_tiles": 3}, 12) == 3
    assert processor.item_limit({"max_tiles": 10**7}, 12) == 40
    assert processor.item_limit({"resolution": "high"}, 12) == 40
    assert processor.item_limit({"max_tiles": 10**7}, 50) == 50  # the call's own number is the operator's
    assert processor.item_limit({"resolution": None}, 7) == processor.item_limit({}, 7) == 7
    low = InternVLImageProcessor(max_tiles=6, media_policy={"max_tiles_per_image": 6, "max_frames_per_video": 4})
    assert low.item_limit({"resolution": "high"}, 6) == low.item_limit({"max_tiles": 12}, 6) == 6
    assert [low.item_num_frames(wanted, None) for wanted in (None, 3, 10**9)] == [None, 3, 4]
    assert low.item_num_frames(10**9, 8) == 8
    for wrong in (0, True, "4", [3]):
        with pytest.raises(ValueError, match="max_tiles"):
            processor.item_limit({"max_tiles": wrong}, 12)


def test_too_many_and_too_large_are_refused_before_anything_is_opened(monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    data, good = encoded(), b"unopened"
    processor = InternVLImageProcessor(media_policy={"max_images_per_call": 2, "max_bytes_per_item": 50})
    many = "There are more images and frames than media_policy allows a call: 2"
    for call in (processor, processor.plan_all, processor.fetch_images):
        with pytest.raises(MediaRefusedError, match=many):
            call([good] * 3)
    with pytest.raises(MediaRefusedError, match=r"images\[1\] is too large: media_policy allows 50 bytes an item"):
        processor([good, data])
    with pytest.raises(MediaRefusedError, match=r"images\[1\], '/etc/passwd', is a path that media_policy does not"):
        processor([good, Path("/etc/passwd")])
    with pytest.raises(TypeError, match=r"images\[1\] is of type dict"):
        processor([good, {"type": "audio"}])


@pytest.fixture
def limited(tokenizer):
    """Make a processor with a policy of these limits."""
    return lambda **limits: InternVLProcessor(InternVLImageProcessor(tile_size=28, media_policy=limits), tokenizer)


def test_images_and_videos_of_a_call_share_its_limits(limited):
    """Each alone is allowed. Frames are counted once, before the first is decoded."""
    clip, image = animation(), encoded()
    pixels = PIL_IMAGE.width * PIL_IMAGE.height
    too_many, too_large = "There are more images and frames than", "is too large"
    cases = [
        ({"max_images_per_call": 3}, too_many),
        ({"max_pixels_per_call": 3 * pixels}, too_large),
        ({"max_bytes_per_call": len(clip) + len(image) - 1}, too_large),
        ({"max_tiles_per_call": 3}, "have 4 tiles, and media_policy allows 3"),
    ]
    for limits, message in cases:
        processor = limited(**limits)
        calls = [
            lambda images, videos, processor=processor: processor(
                images, "<image>" * len(images) + "<video>" * len(videos), videos or None, return_tensors="pt"
            ),
            lambda images, videos, processor=processor: processor.apply_chat_template(
                conversation(images, videos), tokenize=True, return_dict=True
            ),
            lambda images, videos, processor=processor: processor.data_collator().encode(
                {"messages": [*conversation(images, videos), ANSWER]}
            ),
        ]
        for call in calls:
            call([], [clip])
            call([image], [])
            with pytest.raises((MediaRefusedError, ValueError), match=message):
                call([image], [clip])


def test_everything_is_checked_before_the_first_is_opened(limited, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(MediaRefusedError, match=r"videos\[0\], '/etc/passwd', is neither a data URI"):
        limited()(encoded(), "<image><video>", ["/etc/passwd"])
    with pytest.raises(ValueError, match="content of type 'audio'; expected text, image or video"):
        limited().apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": encoded()}, {"type": "audio", "url": "http://a/"}],
                }
            ],
            tokenize=True,
        )
    with pytest.raises(ValueError, match="audios is given, and InternVL reads no audio; expected images and videos"):
        limited()(encoded(), "<image>", audios=["http://127.0.0.1/a.wav"])


def test_empty_modalities(limited):
    processor = limited()
    plain = processor(text=["a", "b"])
    nothing = [None, [], [[], []], [None, None]]
    for images in nothing:
        for videos in nothing:
            for audio in nothing:
                inputs = processor(images, ["a", "b"], videos, audios=audio, audio=audio)
                assert dict(inputs) == dict(plain)
    inputs = processor([None, PIL_IMAGE], ["a", "<image>"])
    assert inputs["pixel_values"].shape[0] == 1
    inputs = processor(text=["a", "<video>"], videos=[None, [PIL_IMAGE]])
    assert inputs["pixel_values"].shape[0] == 1
    messages = [{"role": "user", "content": "a"}]
    assert processor.apply_chat_template(messages, tokenize=True, audio=[]) == processor.apply_chat_template(
        messages, tokenize=True
    )


def conversation(images, videos):
    items = [{"type": "image", "image": one} for one in images] + [{"type": "video", "video": one} for one in videos]
    return [{"role": "user", "content": [*items, {"type": "text", "text": "What?"}]}]


def test_pixels_tiles_and_formats():
    few = InternVLImageProcessor(media_policy={"max_pixels_per_item": 99})
    for image in (encoded(), PIL_IMAGE, np.asarray(PIL_IMAGE)):
        with pytest.raises(MediaRefusedError, match="is too large: media_policy allows 99 pixels an image"):
            few(image)
    tiles = InternVLImageProcessor(tile_size=2, media_policy={"max_tiles_per_call": 9})
    with pytest.raises(MediaRefusedError, match="The images have 10 tiles, and media_policy allows 9 a call"):
        tiles(PIL_IMAGE)
    with pytest.raises(OSError, match="no image Pillow can read"):
        InternVLImageProcessor(media_policy="inline")(encoded("EPS"))


def animation():
    file = io.BytesIO()
    frames = [PIL_IMAGE, PIL_IMAGE.rotate(90), PIL_IMAGE.rotate(180)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def test_frames_count():
    reader = InternVLImageProcessor(media_policy={"max_pixels_per_call": 200}).media_reader()
    with pytest.raises(MediaRefusedError, match="v is too large beside the images before it"):
        frames_of(animation(), "v", reader=reader)
    reader = InternVLImageProcessor(media_policy={"max_images_per_call": 2}).media_reader()
    with pytest.raises(MediaRefusedError, match="There are more images and frames than media_policy allows a call: 2"):
        frames_of(animation(), "v", reader=reader)
    assert len(frames_of(animation(), "v", 2, reader=InternVLImageProcessor().media_reader())) == 2


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {url}\n"]
)
def test_playlists_are_closed(text, tmp_path):
    pytest.importorskip("av", reason="PyAV reads video files, and is optional")
    other = tmp_path / "other.avi"
    other.write_bytes(b"RIFF")
    for name in ("list.m3u8", "list.ffconcat", "list.mp4"):
        playlist = tmp_path / name
        playlist.write_text(text.format(url=other))
        for source in (str(playlist), playlist.read_bytes()):
            with pytest.raises((ValueError, OSError), match="v cannot be decoded as a video"):
                frames_of(source, "v")


def test_grounding_draws_within_its_policy(path):
    grounding = Grounding("", [], [], (10, 10), media_policy=MediaPolicy())
    assert grounding.draw(path.read_bytes()).size == (10, 10)
    with pytest.raises(MediaRefusedError, match="media_policy does not allow"):
        grounding.draw(path)
