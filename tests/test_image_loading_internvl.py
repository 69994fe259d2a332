import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import quote

import numpy as np
import pytest
import torch
from internvl_chat.image_loading_internvl import flatten_images, open_picture, picture_size, to_rgb
from PIL import ExifTags, Image, UnidentifiedImageError


# Five rows, two columns; no two samples alike.
PIXELS = np.arange(0, 240, 8, dtype=np.uint8).reshape(5, 2, 3)


def encode(picture, file_format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def rgb(image, name="image", apply_exif_orientation=True, composite_alpha=True, rescale_depth=True):
    """Open and convert; returns an array (height, width, 3)."""
    picture = to_rgb(
        open_picture(image, name),
        name,
        apply_exif_orientation=apply_exif_orientation,
        composite_alpha=composite_alpha,
        rescale_depth=rescale_depth,
    )
    assert picture.mode == "RGB"
    return np.asarray(picture)


def gray(values):
    """The RGB picture of one row that shows these gray values."""
    return [[[value] * 3 for value in values]]


@pytest.fixture
def png():
    return encode(Image.fromarray(PIXELS))


def test_flatten_keeps_the_order():
    assert flatten_images("a") == ["a"]
    assert flatten_images([["a", "b"], [], ("c", ["d"])]) == ["a", "b", "c", "d"]
    assert flatten_images([]) == []
    batch = np.stack([PIXELS, PIXELS + 1])
    first, second = flatten_images(batch)
    np.testing.assert_array_equal(first, PIXELS)
    np.testing.assert_array_equal(second, PIXELS + 1)


def test_encoded_images_of_every_kind(png, tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(png)
    text = base64.b64encode(png).decode()
    kinds = [
        path,
        str(path),
        path.as_uri(),
        png,
        bytearray(png),
        memoryview(png),
        text,
        base64.encodebytes(png).decode(),  # broken into lines
        text.encode(),
        f"data:image/png;base64,{text}",
        f"data:image/png,{quote(png)}",
        Image.open(path),
    ]
    for image in kinds:
        np.testing.assert_array_equal(rgb(image), PIXELS)


def test_base64_longer_than_any_path():
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    text = base64.b64encode(encode(Image.fromarray(values))).decode()
    assert len(text) > 5000
    np.testing.assert_array_equal(rgb(text), values)


def test_http(png, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/picture.png" else 404)
            self.end_headers()
            self.wfile.write(png)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(rgb(f"{address}/picture.png"), PIXELS)
        with pytest.raises(OSError, match=r"image, .*missing.png', cannot be read \(HTTP Error 404.*check the URL"):
            open_picture(f"{address}/missing.png", "image")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_arrays_of_every_layout(as_tensor):
    convert = torch.from_numpy if as_tensor else np.asarray
    channels_first = PIXELS.transpose(2, 0, 1).copy()
    for samples in (PIXELS, channels_first):
        np.testing.assert_array_equal(rgb(convert(samples)), PIXELS)
        np.testing.assert_array_equal(rgb(convert(samples / np.float32(255))), PIXELS)
        np.testing.assert_array_equal(rgb(convert(samples / 255)), PIXELS)
    one_channel = PIXELS[..., 0].copy()
    for samples in (one_channel, one_channel[..., None], one_channel[None]):
        np.testing.assert_array_equal(rgb(convert(samples)), np.repeat(one_channel[..., None], 3, axis=2))
    opaque = np.concatenate([PIXELS, np.full((5, 2, 1), 255, dtype=np.uint8)], axis=2)
    np.testing.assert_array_equal(rgb(convert(opaque)), PIXELS)


def test_open_layout_follows_the_library_or_the_caller():
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(rgb(cube), cube)
    np.testing.assert_array_equal(rgb(torch.from_numpy(cube)), cube.transpose(1, 2, 0))
    picture = open_picture(cube, "image", "channels_first")
    np.testing.assert_array_equal(np.asarray(picture), cube.transpose(1, 2, 0))


def test_half_precision_tensors():
    values = torch.arange(256).reshape(1, 16, 16) / 255
    expected = torch.arange(256).reshape(16, 16).numpy()
    np.testing.assert_array_equal(rgb(values.half())[..., 0], expected)
    rounded = values.bfloat16()  # 8 bits of precision: off by one near white
    np.testing.assert_allclose(rgb(rounded.requires_grad_())[..., 0], expected, atol=1)


# The corners hold 0 (top left), 24 (top right), 192 (bottom left) and 216 in red.
@pytest.mark.parametrize(
    ("orientation", "top_left"), [(1, 0), (2, 24), (3, 216), (4, 192), (5, 0), (6, 192), (7, 216), (8, 24)]
)
def test_exif_orientation(orientation, top_left):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = Image.open(io.BytesIO(encode(Image.fromarray(PIXELS), exif=exif)))
    size = (5, 2) if orientation > 4 else (2, 5)
    assert picture_size(picture, apply_exif_orientation=True) == size
    assert picture_size(picture, apply_exif_orientation=False) == (2, 5)
    upright = rgb(picture)
    assert upright.shape == (size[1], size[0], 3)
    assert upright[0, 0, 0] == top_left
    np.testing.assert_array_equal(rgb(picture, apply_exif_orientation=False), PIXELS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
def test_broken_exif_is_upright(exif):
    jpeg = encode(Image.fromarray(PIXELS), "JPEG", exif=exif)
    picture = open_picture(jpeg, "image")
    assert picture_size(picture, apply_exif_orientation=True) == (2, 5)
    np.testing.assert_array_equal(rgb(jpeg), rgb(jpeg, apply_exif_orientation=False))


def test_transparency_is_put_on_white():
    red_to_transparent = np.array([[[255, 0, 0, 255], [255, 0, 0, 102], [255, 0, 0, 0]]], dtype=np.uint8)
    expected = [[[255, 0, 0], [255, 153, 153], [255, 255, 255]]]
    picture = Image.fromarray(red_to_transparent)
    np.testing.assert_array_equal(rgb(picture), expected)
    np.testing.assert_array_equal(rgb(red_to_transparent), expected)
    np.testing.assert_array_equal(rgb(picture, composite_alpha=False), [[[255, 0, 0]] * 3])
    assert picture.mode == "RGBA"  # the caller's picture is as it was

    gray_alpha = Image.merge("LA", [Image.new("L", (2, 1)), Image.fromarray(np.array([[0, 255]], dtype=np.uint8))])
    np.testing.assert_array_equal(rgb(gray_alpha), gray([255, 0]))
    np.testing.assert_array_equal(rgb(gray_alpha, composite_alpha=False), gray([0, 0]))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour(mode):
    picture = Image.fromarray(np.array([[0, 200]], dtype=np.uint8))
    picture = picture.convert(mode)
    key = (0, 0, 0) if mode == "RGB" else picture.getpixel((0, 0))
    png = encode(picture, transparency=key)
    np.testing.assert_array_equal(rgb(png), gray([255, 200]))
    np.testing.assert_array_equal(rgb(png, composite_alpha=False), gray([0, 200]))


def test_opaque_alpha_changes_nothing():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.merge("RGBA", [Image.fromarray(values)] * 3 + [Image.new("L", (16, 16), 255)])
    np.testing.assert_array_equal(rgb(picture)[..., 0], values)


def test_deep_pictures_are_scaled_by_their_range():
    samples = np.array([[0, 128, 129, 257, 32768, 65535]])  # one gray level is 257
    expected = gray([0, 0, 1, 1, 128, 255])
    deep = samples.astype(np.uint16)
    for image in (deep, deep.astype(">u2"), encode(Image.fromarray(deep)), Image.fromarray(samples.astype(np.int32))):
        np.testing.assert_array_equal(rgb(image), expected)
    np.testing.assert_array_equal(rgb(np.repeat(deep[..., None], 3, axis=2)), expected)
    np.testing.assert_array_equal(
        rgb(encode(Image.fromarray(deep)), rescale_depth=False), gray([0, 128, 129, 255, 255, 255])
    )
    floats = Image.fromarray(np.array([[0, 0.25, 0.5, 1]], dtype=np.float32))
    np.testing.assert_array_equal(rgb(floats), gray([0, 64, 128, 255]))
    np.testing.assert_array_equal(rgb(floats, rescale_depth=False), gray([0, 0, 0, 1]))


def test_other_modes():
    np.testing.assert_array_equal(rgb(Image.fromarray(np.array([[True, False]]))), gray([255, 0]))
    np.testing.assert_array_equal(rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))), [[[255, 0, 0]]])
    palette = Image.fromarray(PIXELS).quantize(6)
    np.testing.assert_array_equal(rgb(palette), np.asarray(palette.convert("RGB")))


def test_animation_gives_its_first_frame():
    frames = [Image.new("L", (2, 1), value) for value in (50, 200)]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(rgb(gif), gray([50, 50]))


def test_rgb_pictures_are_not_copied():
    picture = Image.fromarray(PIXELS)
    options = {"apply_exif_orientation": True, "composite_alpha": True, "rescale_depth": True}
    assert to_rgb(picture, "image", **options) is picture


def test_opening_does_not_decode(png):
    picture = open_picture(png[:-30], "image")  # the header is there, the pixels are not
    assert picture_size(picture, apply_exif_orientation=False) == (2, 5)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("no/such.png", FileNotFoundError, r"image, 'no/such.png', is no existing file, no URL .* check the path"),
        ("x" * 99 + ".", FileNotFoundError, r"image, 'x{77}\.\.\.', is no existing file"),
        ("file:///no/such.png", OSError, "image, 'file:///no/such.png', cannot be read"),
        ("data:image/png;base64", OSError, "cannot be read"),
        ("data/img", FileNotFoundError, "image, 'data/img', is no existing file"),  # would be valid base64
        (
            b"no picture",
            UnidentifiedImageError,
            r"image holds 10 bytes that are no image Pillow can read: check that the file",
        ),
        (b"", UnidentifiedImageError, "image holds 0 bytes that are no image"),
        ("data:image/png;base64,aGVsbG8=", UnidentifiedImageError, "image holds 5 bytes that are no image"),
        (None, TypeError, "image is of type NoneType, expected a PIL image, a path, .*: convert it"),
        ({"url": "a.png"}, TypeError, "image is of type dict"),
        (np.zeros(4, np.uint8), ValueError, r"image has shape \(4,\), expected \(height, width\), .*: pass one image"),
        (np.zeros((5, 6, 2), np.uint8), ValueError, r"shape \(5, 6, 2\), expected 1, 3 or 4 channels first or last"),
        (torch.zeros(2, 5, 6), ValueError, r"shape \(2, 5, 6\), expected 1, 3 or 4 channels first or last: move"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"shape \(0, 5, 3\), expected at least one pixel: leave empty"),
        (np.zeros((2, 2), np.int64), ValueError, r"dtype int64, expected uint8 .*: convert it, .*astype\('uint8'\)"),
        (np.zeros((2, 2), bool), ValueError, "dtype bool, expected uint8"),
        (torch.zeros(3, 2, 2).int(), ValueError, "dtype int32, expected uint8"),
        (np.full((2, 2), np.nan), ValueError, "image holds NaN or infinite values: replace them"),
        (np.array([[0.0, np.inf]]), ValueError, "image holds NaN or infinite values"),
        (np.array([[0.0, 255.0]]), ValueError, "image is float with values from 0 to 255, expected 0 to 1: divide by"),
        (torch.tensor([[-0.5, 1.0]]), ValueError, "values from -0.5 to 1, expected 0 to 1"),
    ],
)
def test_errors_when_opening(image, error, message):
    with pytest.raises(error, match=message):
        open_picture(image, "image")


def test_unknown_layout():
    with pytest.raises(ValueError, match="input_data_format is 'last', expected 'channels_first' or 'channels_last'"):
        open_picture(PIXELS, "image", "last")


def test_errors_when_decoding(png):
    with pytest.raises(ValueError, match=r"image is damaged and cannot be decoded .*: fetch the file again, or set"):
        rgb(png[:-30])
    with pytest.raises(
        ValueError, match="image has 32-bit samples from 65536 to 65536, expected 0 to 65535: map the range"
    ):
        rgb(Image.fromarray(np.array([[65536]], dtype=np.int32)))
    with pytest.raises(ValueError, match="values from 0 to 2, expected 0 to 1"):
        rgb(Image.fromarray(np.array([[0, 2]], dtype=np.float32)))
    with pytest.raises(ValueError, match="image holds NaN"):
        rgb(Image.fromarray(np.array([[np.nan]], dtype=np.float32)))


def test_decompression_bombs_are_refused(png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(
        ValueError, match=r"image is too large to be decoded safely \(.*10 pixels.*raise PIL.Image.MAX_"
    ):
        open_picture(png, "image")
