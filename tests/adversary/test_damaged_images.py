"""Damaged files: what Pillow refuses is refused, every time it is asked, and what it accepts has Pillow's pixels."""

import contextlib
import io
import warnings

import numpy as np
import pytest
from internvl_chat.image_loading_internvl import open_picture, to_rgb
from internvl_chat.image_processing_internvl import InternVLImageProcessor
from PIL import Image, ImageOps, features


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
MODES = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "I;16", "F"),
    "BMP": ("RGB", "L", "P"),
    "AVIF": ("RGB", "RGBA"),
}
CHOICES = {"apply_exif_orientation": True, "composite_alpha": False, "rescale_depth": False}
ACCEPTED_ERRORS = (OSError, ValueError, TypeError)


def original(file_format, mode, rng):
    """A small image with EXIF data; noise, so that every byte matters."""
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (9, 13), dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(rng.random((9, 13), dtype=np.float32))
    else:
        image = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    options = {"exif": exif} if file_format in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}
    if file_format == "TIFF":
        options["compression"] = str(rng.choice(["raw", "tiff_deflate", "tiff_lzw"])) if mode != "F" else "raw"
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return bytearray(file.getvalue())


def mutated(data, rng):
    """The file with bytes changed, removed, doubled or cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place, kind = int(rng.integers(len(data))), rng.integers(5)
        if kind < 2:
            data[place] = int(rng.integers(256))
        elif kind == 2:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            del data[place : place + int(rng.integers(1, 9))]
        else:
            data = data[: max(place, 12)] if rng.integers(2) else data[:place] + data[place:][:8] + data[place:]
    return bytes(data)


def of_pillow(data):
    """Pillow's own upright RGB pixels; None if it refuses the file."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception:  # noqa: BLE001 (whatever Pillow raises)
        return None
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 (broken EXIF data do not make an image damaged)
        return None
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError:
        return None


def ours(image):
    picture = open_picture(image, "image")
    return np.asarray(to_rgb(picture, "image", **CHOICES))


def refuse(picture):
    try:
        ours(picture)
    except ACCEPTED_ERRORS:
        return
    raise KeyboardInterrupt("a damaged image was accepted")


def check(data):
    expected = of_pillow(data)
    processor = InternVLImageProcessor(tile_size=14, max_tiles=2)
    try:
        plan = processor.plan(data)
    except ACCEPTED_ERRORS:
        plan = None
    try:
        found = ours(data)
    except ACCEPTED_ERRORS:
        assert expected is None
        with contextlib.suppress(Exception):  # where Pillow does not even open it, no PIL image can be given
            picture = Image.open(io.BytesIO(data))
            for _ in range(3):  # what was refused once is refused again, metadata asked for in between
                processor.upright_size(picture)
                refuse(picture)
        return False
    if expected is not None:
        np.testing.assert_array_equal(found, expected)
        assert plan == processor.plan((expected.shape[1], expected.shape[0]))
    else:  # Pillow reads the pixels, but not the EXIF data
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(ours(Image.open(io.BytesIO(data))), found)
    return True


def run(file_format, count, seed):
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    rng, accepted = np.random.default_rng(seed), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata that it skips
        for index in range(count):
            mode = MODES[file_format][index % len(MODES[file_format])]
            data = mutated(original(file_format, mode, rng), rng)
            try:
                accepted += check(data)
            except BaseException as error:
                raise AssertionError(f"{file_format} {mode}, seed {seed}, file {index}: {data.hex()}") from error
    assert 0 < accepted < count


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_files(file_format):
    run(file_format, 60, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize("file_format", FORMATS)
def test_ten_thousand_damaged_files(file_format, seed):
    run(file_format, 150, seed)
