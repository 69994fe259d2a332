"""What one message can take of a machine at most under `media_policy="inline"`; the figures of SECURITY.md.

python tests/adversary/measure.py
"""

import base64
import io
import struct
import sys
import time
import zlib
from pathlib import Path

from PIL import Image
from transformers import AutoProcessor, logging


ROOT = Path(__file__).resolve().parents[2]
FEW = {"max_tiles": 10**7}


def encoded(size, mode="RGB", file_format="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, size, 1).save(file, file_format, **options)
    return file.getvalue()


def animation(frames):
    file = io.BytesIO()
    images = [Image.new("L", (64, 64), index % 256) for index in range(frames)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:])
    return file.getvalue()


def claiming(side):
    """A small PNG whose header says another size."""
    header = b"IHDR" + struct.pack(">II", side, side) + encoded((9, 9))[24:29]
    return encoded((9, 9))[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded((9, 9))[33:]


def image(source, **settings):
    return {"type": "image", "image": source, **settings}


def cases():
    """Yield a name and the items of a message; the largest that are allowed, and what goes beyond."""
    yield "text of 100 000 characters", [{"type": "text", "text": "<image>" * 14286}]
    yield "RGBA, 50 megapixels", [image(encoded((7071, 7071), "RGBA"))]
    yield "RGBA, 51 megapixels", [image(encoded((7142, 7142), "RGBA"))]
    yield "the same, 10 000 000 tiles asked", [image(encoded((7071, 7071), "RGBA"), **FEW)]
    yield "13 images, 10 000 000 tiles asked of each", [image(encoded((2700, 2700)), **FEW)] * 13
    yield "14 images, 10 000 000 tiles asked of each", [image(encoded((2700, 2700)), **FEW)] * 14
    yield "64 images", [image(encoded((9, 9)))] * 64
    yield "65 images", [image(encoded((9, 9)))] * 65
    yield "GIF of 300 frames, 1 000 000 asked", [{"type": "video", "video": animation(300), "num_frames": 10**6}]
    yield "PNG that claims 50 000 × 50 000", [image(claiming(50_000))]
    yield "base64, 64 MiB", [image(base64.b64encode(bytes(48 << 20)).decode())]
    yield "base64, 100 MiB", [image("A" * (100 << 20))]
    yield "a path", [image("/etc/passwd")]
    yield "a URL", [image("http://127.0.0.1/")]


def memory(name):
    """Bytes that this process holds (VmRSS), or held at most since `forget` (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10


def forget():
    Path("/proc/self/clear_refs").write_text("5")


def measure(processor, name, items):
    messages = [{"role": "user", "content": items}]
    forget()
    before, start = memory("VmRSS"), time.perf_counter()
    try:
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        tiles = len(inputs.get("pixel_values", ()))
        outcome = f"{tiles} tiles, {inputs['input_ids'].shape[1]} tokens"
    except (ValueError, OSError) as error:
        outcome = "refused: " + str(error).split(":")[0][:60]
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    return f"| {name} | {outcome} | {seconds:.2f} | {peak / 2**20:.0f} |"


def main():
    logging.set_verbosity_error()
    Image.MAX_IMAGE_PIXELS = None  # the policy alone
    processor = AutoProcessor.from_pretrained(
        sys.argv[1] if len(sys.argv) > 1 else ROOT, trust_remote_code=True, media_policy="inline"
    )
    processor(Image.new("RGB", (900, 900)), "<image>")
    print("| message | outcome | seconds | MiB |\n|---|---|---:|---:|")  # noqa: T201
    for name, items in cases():
        print(measure(processor, name, items), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
