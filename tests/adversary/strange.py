"""What strangers send: texts, images, settings and tensors, from a seed; and what may come of it."""

import base64
import io
import linecache
import random
import traceback
from pathlib import Path

import numpy as np
import torch
from internvl_chat.prompt_format_internvl import CONTROL_TOKENS
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]
PARTS = [*sorted(CONTROL_TOKENS), "<image>", "<video>", "[UNUSED_TOKEN_145]", "<|reserved_7|>", "<ref>", "</box>"]
PARTS += [
    "[[1,2,3,4]]",
    "Image-1: ",
    "\n",
    " ",
    "",
    "\0",
    "\r",
    "a" * 300,
    "好",
    "🙂",
    "e\u0301",
    "\u202e",
    "\ufdd0",
    "\ufdd1",
]
PARTS += ["<|im_", "start|>", "<IMG_CON", "TEXT>", "</", "img>", "<", ">", "|", "{{ 7 * 7 }}", "{% raw %}", "\ufeff"]
NUMBERS = [
    0,
    1,
    2,
    -1,
    3.5,
    True,
    None,
    "4",
    float("nan"),
    float("inf"),
    10**9,
    [2],
    [1, 2],
    (),
    {},
    b"1",
    np.int64(2),
]
TYPES = ["text", "image", "video", "audio", "image_url", "video_url", "", None, 3]
ROLES = ["user", "assistant", "system", "tool", "root", None, 1]


def text(rng, most=6):
    """A text as people type it who want something else than an answer."""
    return "".join(rng.choice(PARTS) for _ in range(rng.randrange(most)))


def anything(rng):
    """A text, or none at all."""
    half = rng.choice(["\ud800", "a\udfff"])
    return rng.choice([text(rng), text(rng), None, 7, b"bytes", ["a"], {"a": 1}, half, ("a", "b")])


def encoded(rng):
    """The bytes of a small image, perhaps damaged."""
    file = io.BytesIO()
    mode, kind = rng.choice(
        [("RGB", "PNG"), ("RGBA", "PNG"), ("L", "JPEG"), ("P", "GIF"), ("RGB", "WEBP"), ("1", "TIFF")]
    )
    Image.effect_noise((rng.randrange(1, 40), rng.randrange(1, 40)), 99).convert(mode).save(file, kind)
    data = bytearray(file.getvalue())
    for _ in range(rng.choice([0, 0, 1, 5])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.choice([len(data), len(data), len(data) // 2])])


def array(rng):
    shape = [rng.choice([0, 1, 2, 3, 4, 5, 17]) for _ in range(rng.randrange(5))]
    kind = rng.choice(["uint8", "uint16", "int64", "float32", "float16", "bool", "complex64", "object"])
    return np.full(shape, rng.choice([0, 1, 2, float("nan")]), "float32").astype(kind)


def tensor(rng):
    """A tensor of any shape, type and layout."""
    shape = rng.choice(
        [(), (0,), (5,), (1, 5), (2, 3), (1, 3, 112, 112), (2, 3, 112, 112), (3, 112, 112), (1, 3, 56, 9)]
    )
    kind = rng.choice(
        [torch.float32, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
    )
    made = torch.full(shape, rng.choice([0.0, 1.0, float("nan"), -5.0]), dtype=torch.float32).to(kind)
    form = rng.randrange(8)
    return made.to("meta") if form == 0 else made.to_sparse() if form == 1 else made


def image(rng):
    """An image, or what somebody takes for one."""
    forms = [
        lambda: encoded(rng),
        lambda: io.BytesIO(encoded(rng)),
        lambda: base64.b64encode(encoded(rng)).decode(),
        lambda: f"data:image/png;base64,{base64.b64encode(encoded(rng)).decode()}",
        lambda: Image.effect_noise((9, 7), 9).convert(
            rng.choice(["RGB", "RGBA", "LA", "P", "F", "I", "CMYK", "1", "HSV"])
        ),
        lambda: array(rng),
        lambda: tensor(rng),
        lambda: {"bytes": encoded(rng), "path": None},
        lambda: rng.choice(
            ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/", "\0", "a" * 9999, Path("/etc")]
        ),
        lambda: rng.choice([None, 3, True, {}, {"bytes": None}, {"url": "a"}, [], [[]], object(), "", b""]),
        lambda: [image(rng), image(rng)],
    ]
    return rng.choice(forms)()


def item(rng):
    kind = rng.choice(TYPES)
    keys = [
        "text",
        "image",
        "video",
        "url",
        "path",
        "base64",
        "image_url",
        "max_tiles",
        "resolution",
        "num_frames",
        "x",
    ]
    held = {"type": kind}
    if rng.random() < 0.8 and kind == "text":
        held["text"] = anything(rng) if rng.random() < 0.3 else text(rng)
    if rng.random() < 0.8 and kind in ("image", "video"):
        held[kind] = image(rng)
    for key in rng.sample(keys, rng.choice([0, 0, 1, 2])):
        held[key] = rng.choice([*NUMBERS, "low", "high", text(rng)])
    return held


def messages(rng):
    """A conversation, or what somebody takes for one."""
    if rng.random() < 0.1:
        return anything(rng)
    made = []
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        content = [item(rng) for _ in range(rng.randrange(4))] if rng.random() < 0.7 else anything(rng)
        made.append({"role": rng.choice(ROLES) if rng.random() < 0.2 else rng.choice(ROLES[:2]), "content": content})
    return made


def settings(rng):
    """Settings of the image processor, some of them wrong."""
    names = ["max_tiles", "min_tiles", "total_max_tiles", "tile_size", "resolution", "use_thumbnail", "image_mean"]
    names += ["image_std", "padding_side", "max_length", "num_frames", "return_tensors", "pad_to_multiple_of", "typo"]
    chosen = rng.sample(names, rng.choice([0, 0, 1, 2]))
    # Nothing enormous: what an operator says holds.
    values = [value for value in NUMBERS if value != 10**9]
    return {name: rng.choice([*values, "low", "pt", "left", [0.5] * 3]) for name in chosen}


def history(rng):
    if rng.random() < 0.2:
        return anything(rng)
    return [(text(rng), text(rng)) if rng.random() < 0.9 else anything(rng) for _ in range(rng.randrange(3))]


def check(call):
    """Make a call whose outcome must be one of three.

    Right, for which the call itself looks; refused with a sentence of this package's; or by Python at the call.

    Returns:
        Whether it was accepted.
    """
    try:
        call()
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        line = linecache.getline(last.filename, last.lineno).strip()
        is_ours = Path(last.filename).parent == ROOT and line.startswith("raise")
        is_ours &= isinstance(error, (ValueError, TypeError, OSError, ImportError)) and len(str(error)) > 20
        is_pythons = isinstance(error, TypeError) and "argument" in str(error)
        if not is_ours and not is_pythons:
            raise AssertionError(f"{type(error).__name__} at {last.filename}:{last.lineno}: {error}") from error
        return False
    return True


def seeded(*numbers):
    return random.Random(str(numbers))
