import hashlib
import io
import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from internvl_chat.image_loading_internvl import open_picture, to_rgb
from internvl_chat.image_processing_internvl import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageSettings,
    InternVLImageProcessor,
)
from internvl_chat.tile_pixels_internvl import _bands, _normalise, write_tiles
from internvl_chat.tiling_internvl import TilePlan
from pictures import gradient, normalised, official_steps
from PIL import Image
from safetensors.numpy import load_file
from transformers import CLIPImageProcessor

# `transformers.AutoImageProcessor` is a dummy without torchvision in some 5.x releases, this one is not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor


ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {field.name for field in fields(ImageSettings)}
OFFICIAL = {"apply_exif_orientation": False, "composite_alpha": False, "rescale_depth": False}

# preprocessor_config.json as published with InternVL-Chat-V1-5.
PUBLISHED = {
    "crop_size": 448,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 448,
}


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


@pytest.fixture(scope="module")
def processor():
    return InternVLImageProcessor()


@pytest.fixture
def folder(tmp_path):
    """A model folder with the files of the image processor."""
    path = tmp_path / "model"
    path.mkdir()
    for name in (
        "image_loading_internvl.py",
        "inputs_internvl.py",
        "image_processing_internvl.py",
        "media_internvl.py",
        "preprocessor_config.json",
        "tile_pixels_internvl.py",
        "tiling_internvl.py",
    ):
        shutil.copy(ROOT / name, path)
    return path


# Pixel values


@pytest.mark.parametrize(
    ("size", "grid"),
    [((60, 45), (4, 3)), ((45, 60), (3, 4)), ((30, 10), (3, 1)), ((7, 7), (1, 1)), ((1, 90), (1, 12))],
)
def test_equals_the_official_steps(processor, size, grid):
    picture = gradient(*size)
    expected = official_steps(picture, *grid, side=14)
    outputs = processor(picture, tile_size=14)
    assert outputs["pixel_values"].dtype == torch.float32
    assert torch.equal(outputs["pixel_values"], expected)
    outputs = processor(picture, tile_size=14, use_thumbnail=False)
    assert torch.equal(outputs["pixel_values"], expected[: grid[0] * grid[1]])


def test_known_hashes(processor):
    outputs = processor([gradient(640, 427), gradient(300, 300)], max_tiles=6, return_tensors="np")
    assert outputs["num_patches"].tolist() == [7, 1]
    assert [sha256(outputs["pixel_values"][:7]), sha256(outputs["pixel_values"][7:])] == [
        "fc1afe9555c6ea7dc52de6b55630338d19845e92e36dba11b2259a0bb55a219a",
        "b75d7357c031a88474f30efb80f5d35f6298465bc952a4899b6a8be68776e214",
    ]


def test_tiles_are_row_by_row_and_the_thumbnail_is_last(processor):
    values = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8).repeat(448, axis=0).repeat(448, axis=1)
    outputs = processor(values, image_mean=(0, 0, 0), image_std=(1, 1, 1), return_tensors="np")
    samples = np.rint(outputs["pixel_values"] * 255)
    assert samples[:6, 0, 224, 224].tolist() == [10, 20, 30, 40, 50, 60]
    assert samples[6, 1, ::447, ::447].tolist() == [[10, 30], [40, 60]]


def test_batch_equals_singles_in_order(processor):
    pictures = [gradient(40, 30), gradient(30, 30), gradient(10, 30)]
    singles = [processor(picture, tile_size=14) for picture in pictures]
    batch = processor([[pictures[0]], [], [pictures[1], pictures[2]]], tile_size=14)
    assert batch["num_patches"].tolist() == [13, 10, 4]
    assert torch.equal(batch["pixel_values"], torch.cat([single["pixel_values"] for single in singles]))


def test_padding_to_a_square(processor):
    flat, tall = gradient(4, 2), gradient(2, 5)
    mean_colour = normalised(Image.new("RGB", (4, 1), (123, 116, 103)))
    padded = processor(flat, tile_size=4, max_tiles=1, pad2square=True)["pixel_values"][0]
    assert torch.equal(padded, torch.cat([mean_colour, normalised(flat), mean_colour], dim=1))
    padded = processor(tall, tile_size=5, max_tiles=1, pad2square=True)["pixel_values"][0]
    assert torch.equal(padded[:, :, 1:3], normalised(tall))  # one column before, two after
    assert torch.equal(padded[:, 2:3, 3:].expand(3, 1, 2), mean_colour[:, :, :2])


def test_return_tensors(processor):
    picture = gradient(4, 4)
    assert isinstance(processor(picture)["num_patches"], torch.Tensor)
    for return_tensors in ("np", None):
        outputs = processor(picture, return_tensors=return_tensors)
        assert isinstance(outputs["pixel_values"], np.ndarray)
        assert isinstance(outputs["num_patches"], np.ndarray)
        assert outputs["num_patches"].dtype == np.int64


# Whatever comes in


def test_settings_reach_the_loading(processor):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    gradient(60, 20).save(file, "PNG", exif=exif)
    jpeg = file.getvalue()
    assert processor.plan(jpeg).canvas_size == (448, 3 * 448)
    assert processor.plan(jpeg, apply_exif_orientation=False).canvas_size == (3 * 448, 448)
    upright = gradient(60, 20).transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(processor(jpeg, tile_size=14)["pixel_values"], processor(upright, tile_size=14)["pixel_values"])

    clear = Image.new("RGBA", (3, 3), (255, 0, 0, 0))
    white = normalised(Image.new("RGB", (3, 3), "white"))
    red = normalised(Image.new("RGB", (3, 3), "red"))
    assert torch.equal(processor(clear, tile_size=3, max_tiles=1)["pixel_values"][0], white)
    assert torch.equal(processor(clear, tile_size=3, max_tiles=1, composite_alpha=False)["pixel_values"][0], red)

    deep = Image.fromarray(np.full((3, 3), 257 * 7, dtype=np.uint16))
    gray = normalised(Image.new("RGB", (3, 3), (7, 7, 7)))
    assert torch.equal(processor(deep, tile_size=3, max_tiles=1)["pixel_values"][0], gray)
    assert torch.equal(processor(deep, tile_size=3, max_tiles=1, rescale_depth=False)["pixel_values"][0], white)


def test_layout_of_arrays(processor):
    cube = np.asarray(gradient(3, 3))
    first = processor(cube, tile_size=3, max_tiles=1, input_data_format="channels_first")["pixel_values"][0]
    assert torch.equal(first, normalised(cube.transpose(1, 2, 0)))
    assert processor.plan(np.zeros((3, 90, 3), np.uint8), input_data_format="channels_first").columns == 1
    assert processor.plan(np.zeros((3, 90, 3), np.uint8)).columns == 12


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
def test_extreme_sizes(processor, size):
    picture = Image.new("RGB", size, (1, 2, 3))
    outputs = processor(picture, tile_size=14)
    assert outputs["num_patches"].tolist() == [processor.plan(picture).num_tiles] == [1 if size == (1, 1) else 13]
    assert torch.isfinite(outputs["pixel_values"]).all()


def test_fetch_images_keeps_transparency_and_nesting(processor, tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (2, 2)).save(path)
    array = np.zeros((2, 2), np.uint8)
    ((first, second), third) = processor.fetch_images([[str(path), array], path.read_bytes()])
    assert first.mode == third.mode == "RGBA"
    assert second is array


# Counting


def test_counts_agree_with_the_tiles_cut(processor):
    for size in [(30, 30), (100, 40), (7, 300)]:
        for settings in ({}, {"max_tiles": 5}, {"use_thumbnail": False}, {"min_tiles": 3}, {"max_tiles": 40}):
            cut = processor(Image.new("RGB", size), tile_size=8, **settings)["num_patches"].tolist()
            kwargs = {"tile_size": 8, "return_tensors": "pt", **settings}
            assert cut == [processor.plan(size, **kwargs).num_tiles]
            assert cut == [processor.get_number_of_image_patches(size[1], size[0], kwargs)]
    assert processor.get_number_of_image_patches(1300, 800) == 7
    assert processor.plan((800, 1300)) == TilePlan(columns=2, rows=3, tile_size=448, has_thumbnail=True)


def test_plan_does_not_decode(processor):
    file = io.BytesIO()
    gradient(900, 300).save(file, "PNG")
    assert processor.plan(file.getvalue()[:200]).num_tiles == 4


# Settings


def test_call_settings_do_not_stay(processor):
    before = processor.to_dict()
    assert processor(gradient(90, 30), tile_size=8, max_tiles=2, image_mean=[0, 0, 0])["num_patches"].tolist() == [3]
    assert processor.to_dict() == before
    changed = InternVLImageProcessor(max_tiles=2, tile_size=8)
    assert changed(gradient(90, 30))["pixel_values"].shape == (3, 3, 8, 8)
    assert changed(gradient(90, 30), max_tiles=None)["num_patches"].tolist() == [3]  # None is "not given"


def test_limits_of_each_image(processor):
    wide = gradient(9, 3)
    images = [wide, wide, wide]

    def cut(images=images, processor=processor, **settings):
        return processor(images, tile_size=3, **settings)["num_patches"].tolist()

    assert cut(max_tiles=[1, None, 2]) == [1, 4, 3]
    assert cut(max_tiles=(1, 3, 2), min_tiles=2) == [1, 4, 3]
    assert cut(resolution=["low", "auto", "high"]) == [1, 4, 4]
    assert cut(resolution="low") == [1, 1, 1]
    assert cut(total_max_tiles=11) == [3, 3, 3]
    plans = processor.plan_all([(9, 3), wide, wide], tile_size=3, total_max_tiles=11, max_tiles=[1, None, 3])
    assert [plan.num_tiles for plan in plans] == [1, 4, 4]
    assert cut([[wide], [wide, wide]], total_max_tiles=4, max_tiles=[[None], [None, None]]) == [4, 1, 1]  # by prompt
    few = InternVLImageProcessor(max_tiles=2, total_max_tiles=6)
    assert cut(processor=few) == [1, 1, 1]
    assert cut([wide, wide], processor=few) == [3, 3]
    assert few.tile_limits(2, resolution="auto") == [2, 2]
    assert few.tile_limits(2, resolution="high") == [40, 40]
    assert InternVLImageProcessor(max_tiles=50).tile_limits(1, resolution="high") == [50]
    assert InternVLImageProcessor.from_dict(few.to_dict()).total_max_tiles == 6


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_pixel_values_of_another_type(processor, name):
    picture, dtype = gradient(90, 30), getattr(torch, name)
    expected = processor(picture, tile_size=8)["pixel_values"].to(dtype)
    for wanted in (dtype, name):
        pixel_values = processor(picture, tile_size=8, dtype=wanted)["pixel_values"]
        assert pixel_values.dtype == dtype
        assert torch.equal(pixel_values.double(), expected.double())


def test_numpy_of_another_type(processor):
    pixel_values = processor(gradient(9, 3), tile_size=8, dtype="float16", return_tensors="np")["pixel_values"]
    assert pixel_values.dtype == np.float16


def test_names_of_the_native_image_processor(processor):
    picture = gradient(9, 3)
    assert processor(picture, tile_size=8, max_patches=2, min_patches=1)["num_patches"].tolist() == [3]
    # As TRL asks for the number of tiles of each image, to cut pixel values by sample.
    counts = processor(images=[picture, picture], tile_size=8, crop_to_patches=True, return_tensors="pt")
    assert [group.sum().item() for group in torch.split(counts["num_patches"], [1, 1])] == [4, 4]
    assert processor(picture, tile_size=8, crop_to_patches=False)["num_patches"].tolist() == [1]
    native = InternVLImageProcessor(crop_to_patches=True, max_patches=6, size={"height": 448, "width": 448})
    assert (native.min_tiles, native.max_tiles, native.tile_size) == (1, 6, 448)


@pytest.mark.parametrize("size", [224, {"height": 224, "width": 224}, {"shortest_edge": 224}])
def test_published_configs_load(size):
    loaded = InternVLImageProcessor.from_dict({**PUBLISHED, "size": size, "processor_class": "CLIPProcessor"})
    assert (loaded.tile_size, loaded.max_tiles) == (224, 12)
    assert loaded.image_mean == IMAGENET_MEAN


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_tile": 3}, TypeError, r"Unknown image settings \['max_tile'\], expected some of min_tiles, max_tiles"),
        ({"max_tiles": 0}, ValueError, "max_tiles is 0, expected at least min_tiles"),
        ({"min_tiles": 0}, ValueError, "min_tiles is 0, expected at least 1"),
        ({"tile_size": -1}, ValueError, "tile_size is -1, expected a positive number"),
        ({"max_tiles": 2.5}, ValueError, "max_tiles is 2.5, expected a whole number"),
        ({"total_max_tiles": "6"}, ValueError, "total_max_tiles is '6', expected a whole number"),
        ({"tile_size": 224.0}, ValueError, "tile_size is 224.0, expected a whole number"),
        ({"use_thumbnail": "no"}, ValueError, "use_thumbnail is 'no', expected True or False"),
        ({"image_mean": 0.5}, ValueError, "image_mean is 0.5, expected three numbers"),
        ({"image_mean": "rgb"}, ValueError, "image_mean is 'rgb', expected three numbers"),
        ({"image_mean": [0.5]}, ValueError, r"image_mean is \[0.5\], expected three numbers for red, green and blue"),
        ({"image_std": [1, 1, 0]}, ValueError, r"image_std is \(1, 1, 0\), expected positive numbers"),
        ({"image_std": [1, 1, float("nan")]}, ValueError, "image_std is .*, expected three numbers"),
        ({"pad2square": True}, ValueError, "pad2square makes one square tile, but max_tiles is 12: set max_tiles=1"),
        ({"do_normalize": False}, ValueError, "do_normalize is always True for InternVL's tiles: leave it out"),
        ({"resample": 2}, ValueError, "resample is always 3 for InternVL's tiles"),
        ({"total_max_tiles": 0}, ValueError, "total_max_tiles is 0, expected at least 1, or None for no limit"),
        ({"rescale_factor": 0.5}, ValueError, "rescale_factor is always 0.0039"),
    ],
)
def test_wrong_settings(processor, settings, error, message):
    with pytest.raises(error, match=message):
        InternVLImageProcessor(**settings)
    with pytest.raises(error, match=message):
        processor(gradient(4, 4), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tiles": [1, 2]}, r"has 2 values, \[1, 2\], for 1 images: give one for each image"),
        ({"max_tiles": [0]}, "max_tiles is 0, expected at least min_tiles"),
        ({"max_tiles": [2.5]}, "max_tiles is 2.5 for an image, expected a whole number, or None"),
        ({"resolution": 3}, "resolution is 3, expected 'low'"),
        ({"resolution": ""}, "resolution is '', expected 'low'"),
        ({"resolution": []}, r"resolution has 0 values, \[\], for 1 images"),
        ({"resolution": "mid"}, "resolution is 'mid', expected 'low' .one tile., 'high' .40. or 'auto'"),
        ({"resolution": "low", "max_tiles": 2}, "resolution and max_tiles are both given"),
        ({"pad2square": True, "resolution": "high"}, "pad2square makes one square tile, but max_tiles is 40"),
        ({"dtype": torch.int8}, "dtype is torch.int8, expected a floating point type such as torch.bfloat16"),
        ({"dtype": "bf16"}, "dtype is 'bf16', expected a floating point type"),
    ],
)
def test_wrong_settings_of_a_call(processor, settings, message):
    with pytest.raises(ValueError, match=message):
        processor(gradient(4, 4), **settings)


def test_size_must_be_square():
    with pytest.raises(ValueError, match=r"size is .*336.*, expected a square: set tile_size"):
        InternVLImageProcessor(size={"height": 448, "width": 336})


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "Got no images, expected at least one: leave the call out"),
        ([[], []], ValueError, "Got no images"),
        (Image.new("RGB", (0, 5)), ValueError, "picture is 0 x 5 pixels"),
        ([gradient(4, 4), b"no picture"], OSError, r"images\[1\] holds 10 bytes that are no image"),
        ([gradient(4, 4), None], TypeError, r"images\[1\] is of type NoneType"),
        ([[gradient(4, 4)], ["no/such.png"]], FileNotFoundError, r"images\[1\], 'no/such.png', is no existing file"),
        ([np.zeros((3, 4, 5, 6, 7), np.uint8)], ValueError, r"images\[0\] has shape \(3, 4, 5, 6, 7\)"),
        (np.full((4, 4), 2.0), ValueError, r"images\[0\] is float with values from 2 to 2, expected 0 to 1"),
    ],
)
def test_wrong_images(processor, images, error, message):
    with pytest.raises(error, match=message):
        processor(images, tile_size=8)


@pytest.mark.parametrize("size", [(800.0, 600.0), (800, 600, 3), [800], ("800", "600"), (0, 5)])
def test_wrong_sizes(processor, size):
    for call in (processor.plan, processor.upright_size):
        with pytest.raises(ValueError, match=r"The image size is .*, expected \(width, height\) in pixels"):
            call(size)
    assert processor.plan([800, 600]) == processor.plan((np.int16(800), 600))


def test_damaged_picture_is_named(processor):
    file = io.BytesIO()
    gradient(50, 50).save(file, "PNG")
    with pytest.raises(ValueError, match=r"images\[1\] is damaged and cannot be decoded"):
        processor([gradient(4, 4), file.getvalue()[:-40]], tile_size=8)


# Loading and saving


def test_loads_as_remote_code_and_survives_saving(folder, tmp_path, processor):
    loaded = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, max_tiles=3)
    assert type(loaded).__name__ == "InternVLImageProcessor"
    assert loaded.max_tiles == 3
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoImageProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert again.to_dict() == loaded.to_dict()
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {path.name for path in folder.iterdir()}
    picture = gradient(90, 30)
    outputs = again(picture, tile_size=14)
    assert outputs["num_patches"].tolist() == [4]
    assert torch.equal(outputs["pixel_values"], processor(picture, tile_size=14, max_tiles=3)["pixel_values"])
    saved = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]


@pytest.mark.parametrize("wrong", [{"max_tils": 6}, {"use_thumbnails": False}, {"size": 336}])
def test_misspelt_settings_at_loading(folder, wrong):
    with pytest.raises(TypeError, match=f"Unknown image settings .*{next(iter(wrong))}.*: check the spelling"):
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, **wrong)
    with pytest.raises(ValueError, match="do_resize is always True"):
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, do_resize=False)


def test_shipped_config(processor):
    shipped = json.loads((ROOT / "preprocessor_config.json").read_text())
    loaded = InternVLImageProcessor(**shipped)
    assert {name: getattr(loaded, name) for name in SETTINGS} == {name: getattr(processor, name) for name in SETTINGS}
    assert shipped.keys() >= SETTINGS
    # Whoever reads the published keys finds them unchanged.
    assert shipped.items() >= {key: PUBLISHED[key] for key in PUBLISHED if key != "feature_extractor_type"}.items()
    assert shipped["auto_map"]["AutoImageProcessor"] == "image_processing_internvl.InternVLImageProcessor"


def test_clip_can_read_the_config(folder):
    clip = CLIPImageProcessor.from_pretrained(folder)
    assert clip(gradient(90, 30), return_tensors="pt")["pixel_values"].shape == (1, 3, 448, 448)


# The recorded answers of the official code


@pytest.fixture(scope="module")
def recorded(goldens):
    version = "13.0.0" if int(PIL.__version__.split(".")[0]) >= 13 else "10.4.0"
    return json.loads((goldens / "preprocess" / f"preprocess.pillow{version}.json").read_text())["images"]


@pytest.mark.parametrize("part", ["every fourth", pytest.param("the others", marks=pytest.mark.slow)])
def test_recorded_tiles_and_pixel_values(goldens, recorded, part):
    every_fourth = set(sorted(recorded)[::4])
    processor = InternVLImageProcessor(**OFFICIAL)
    mismatches = []
    for name, answers in recorded.items():
        if (name in every_fourth) != (part == "every fourth"):
            continue
        picture = Image.open(goldens / "preprocess" / "images" / name).convert("RGB")
        settings = [({"max_tiles": int(tiles)}, answer) for tiles, answer in answers["rgb_first"].items()]
        settings.append(({"use_thumbnail": False}, answers["no_thumbnail_12"]))
        for changes, answer in settings:
            plan = processor.plan(picture.size, **changes)
            samples = torch.empty(plan.num_tiles, 3, 448, 448)
            write_tiles(picture, plan, (0, 0, 0), (1, 1, 1), out=samples)
            tiles = [sha256(np.rint(255 * tile).astype(np.uint8).transpose(1, 2, 0)) for tile in samples.numpy()]
            outputs = processor(picture, return_tensors="np", **changes)
            got = [tiles, [plan.num_tiles], sha256(outputs["pixel_values"])]
            if got != [answer["tile_sha256"], outputs["num_patches"].tolist(), answer["pixel_values_sha256"]]:
                mismatches.append((name, changes))
            if [plan.columns, plan.rows] != answer.get("grid_wh", [plan.columns, plan.rows]):
                mismatches.append((name, changes, plan))
    assert len(recorded) == 26
    assert mismatches == []


def test_recorded_files(goldens, recorded):
    """Straight from the files, with the settings that follow the official code."""
    processor = InternVLImageProcessor(**OFFICIAL, max_tiles=1)
    for name, answers in recorded.items():
        path = goldens / "preprocess" / "images" / name
        assert sha256(np.asarray(to_rgb(open_picture(path, name), name, **OFFICIAL))) == answers["rgb_sha256"]
        plain = processor(path, return_tensors="np")["pixel_values"]
        assert sha256(plain) == answers["plain_resize_pixel_values_sha256"], name
        padded = processor(path, return_tensors="np", pad2square=True)["pixel_values"]
        assert sha256(padded) == answers["pad2square_pixel_values_sha256"], name


def test_defaults_differ_from_the_official_code_only_where_meant(goldens, recorded):
    for name, answers in recorded.items():
        path = goldens / "preprocess" / "images" / name
        rgb = to_rgb(open_picture(path, name), name, **dict.fromkeys(OFFICIAL, True))
        differs = sha256(np.asarray(rgb)) != answers["rgb_sha256"]
        assert differs == (name in ("exif6_600x300.jpg", "gray16_256x192.png", "rgba_300x200.png")), name


def test_recorded_tensors(goldens):
    tensors = load_file(goldens / "preprocess" / "preprocess.safetensors")
    samples = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
    values = torch.empty(3, 1, 256)
    _normalise(_bands(samples), IMAGENET_MEAN, IMAGENET_STD, out=values)
    np.testing.assert_array_equal(values[:, 0].numpy(), tensors["lut_channel_value"])
    processor = InternVLImageProcessor(**OFFICIAL)
    compared = 0
    for key, expected in tensors.items():
        name, _, kind = key.partition(".max")
        path = goldens / "preprocess" / "images" / name
        if path.is_file() and "pixel_values" in kind:
            step = 29 if kind.endswith("stride_29") else 1
            outputs = processor(path, max_tiles=int(kind[0]), return_tensors="np")
            np.testing.assert_array_equal(outputs["pixel_values"][..., ::step, ::step], expected)
            compared += 1
    assert compared == 5
    padded = processor(
        goldens / "preprocess" / "images" / "p_10x10.png", max_tiles=1, pad2square=True, return_tensors="np"
    )
    expected = tensors["p_10x10.png.pad2square.pixel_values_at_stride_29"]
    np.testing.assert_array_equal(padded["pixel_values"][0, :, ::29, ::29], expected)


@pytest.mark.parametrize("name", ["max_num", "max_dynamic_patch", "max_patches"])
def test_published_names_act_in_calls_and_while_loading(name):
    image = Image.new("RGB", (896, 448))
    processor = InternVLImageProcessor()
    assert processor(image, **{name: 1})["num_patches"].tolist() == [1]
    assert InternVLImageProcessor.from_dict({}, **{name: 1}).max_tiles == 1
    assert processor(image, dynamic_image_size=False, max_num=6)["num_patches"].tolist() == [1]
    with pytest.raises(ValueError, match="max_tiles is 2 under one name and 3 as"):
        processor(image, **{"max_tiles": 2, name: 3})


def test_foreign_attributes_are_not_saved(tmp_path):
    processor = InternVLImageProcessor(max_tiles=3)
    processor.is_override = True
    processor.save_pretrained(tmp_path)
    assert InternVLImageProcessor.from_pretrained(tmp_path).max_tiles == 3
