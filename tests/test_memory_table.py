"""The arithmetic of memory: what is stored, what is alive, and where the 26B model fits."""

import json
import math

import pytest
import torch
from tiny_models import tiles, tiny_model

from benchmarks import memory_table
from benchmarks.memory_table import (
    GIB,
    HEADROOM,
    MAX_TILES,
    PRECISIONS,
    RESERVE,
    AliveBytes,
    FusedAttention,
    Layout,
    Need,
)


pytestmark = pytest.mark.newest

PUBLISHED = {
    "26b": "internvl-chat-v1-5",
    "4b": "mini-internvl-chat-4b-v1-5",
    "2b": "mini-internvl-chat-2b-v1-5",
}


def test_what_is_alive():
    linear = torch.nn.Linear(10, 10, bias=False)
    with torch.no_grad(), AliveBytes(linear) as alive:
        first = torch.zeros(1000)  # 4000 bytes
        second = first.view(10, 100) + 1  # a view is no memory, the sum is
        assert alive.now == 8000
        del first
        third = linear(second.view(100, 10))
        assert alive.now == 8000
        del second, third
    assert (alive.now, alive.peak) == (0, 8000)


@torch.no_grad()
def test_the_meta_device_needs_what_the_cpu_needs():
    peaks = []
    for device in ("cpu", "meta"):
        model, pixel_values = tiny_model().to(device), tiles(3).to(device)
        with FusedAttention(), AliveBytes(model) as alive:
            model.get_image_features(pixel_values, vision_batch_size=2)
        peaks.append(alive.peak)
    assert peaks[0] == peaks[1] > 0


def stored(precision, rows, columns):
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in PRECISIONS[precision](rows, columns))


def test_quantized_weights_are_stored_as_bitsandbytes_does():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(192, 320)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    tensors = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert stored("nf4", 192, 320) == sum(tensor.nbytes for tensor in tensors)
    packed, scales, _ = functional.int8_vectorwise_quant(weight.half())
    assert stored("int8", 192, 320) == packed.nbytes + scales.nbytes


@pytest.mark.parametrize("name", PUBLISHED)
def test_layouts_are_the_published_ones(goldens, name):
    shapes = json.loads((goldens / "shapes.json").read_text("utf-8"))[PUBLISHED[name]]
    model = memory_table.build_empty(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(map(math.prod, shapes.values()))


def test_what_a_picture_needs():
    one, eight = (Layout("2b").need(count) for count in (1, 8))
    token = 2 * 24 * 8 * 128 * 2  # keys and values of 24 layers with 8 heads of 128 numbers of 2 bytes
    assert one.cache == token * (256 + memory_table.TEXT_TOKENS)
    assert eight.cache - one.cache == token * 7 * 256
    assert one.features == 256 * 2048 * 2
    assert eight.vision == pytest.approx(8 * one.vision, rel=0.1)
    assert Layout("2b").need(8, 1).vision < eight.vision / 3


def test_what_fits():
    layout = Layout("2b", "nf4")
    need = layout.need(5)
    just = RESERVE + layout.weights() + need.peak
    assert layout.most_tiles(just) == 5
    assert layout.most_tiles(just - 1) == 4
    assert layout.most_tiles(layout.weights()) == 0
    waiting = layout.weights("vision_model")
    assert layout.most_tiles(just - waiting // 2, on_cpu=("vision_model",)) >= 5
    assert layout.weights() < Layout("2b", "int8").weights() < Layout("2b").weights()


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("num_gpus", "size"), [(2, 24), (4, 16), (8, 12)])
def test_26b_on_many_gpus(precision, num_gpus, size):
    layout = Layout("26b", precision)
    device_map = layout.place(num_gpus, size * GIB - HEADROOM)
    weights = layout.loads(device_map, Need(0, 0, 0, 0))
    assert sum(weights.values()) == layout.weights()
    if (precision, num_gpus) == ("bf16", 2):
        assert weights["disk"] > 0, "51 GB do not fit"
        return
    assert set(weights) <= set(range(num_gpus))
    assert max(layout.loads(device_map, layout.need(MAX_TILES)).values()) <= size * GIB - RESERVE
    inside_a_layer = (".attn", ".mlp.", ".attention.", ".feed_forward")
    assert not [part for part in device_map if any(kind in part for kind in inside_a_layer)]
