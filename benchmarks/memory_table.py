"""What a model needs of a GPU's memory, by arithmetic: which precision fits where, with how many tiles.

Nothing is loaded and nothing measured. The model is built on the meta device, whose tensors have shapes and no memory;
tiles and a prompt run through its own code, and the sizes of the tensors alive at each moment are added up. Not in the
sum: what the driver, the allocator and the kernels need besides, for which `RESERVE` of every GPU is left alone.

    python -m benchmarks.memory_table
    python -m benchmarks.memory_table --gpus 2x24 4x16 8x12
"""

import argparse
import copy
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModel, DynamicCache, PreTrainedModel
from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from benchmarks.measure import GIB
from benchmarks.models import our_config


MIB = 1 << 20
RESERVE = GIB
HEADROOM = 3 * GIB  # of each of several GPUs, which max_memory leaves to pictures and text
SLIM_LAYERS = 2
TEXT_TOKENS = 512  # of questions and answers, beside the pictures
MAX_TILES = 41  # 40 and a thumbnail
PUBLISHED = ("26b", "4b", "2b")  # layouts of the table
# Precision -> how a weight (out, in) of the language model's layers is stored, as (shape, dtype) of its tensors.
Stored = list[tuple[tuple[int, ...], torch.dtype]]
PRECISIONS: dict[str, Callable[[int, int], Stored] | None] = {
    "bf16": None,
    # A byte per weight and a scale per row.
    "int8": lambda rows, columns: [((rows, columns), torch.int8), ((rows,), torch.float32)],
    # Half a byte per weight, a byte per 64 weights for their scale and a float per 256 scales; a table and a mean.
    "nf4": lambda rows, columns: [
        ((math.ceil(rows * columns / 2), 1), torch.uint8),
        ((math.ceil(rows * columns / 64),), torch.uint8),
        ((math.ceil(rows * columns / 64 / 256) + 256 + 16 + 1,), torch.float32),
    ],
}


class FusedAttention(TorchFunctionMode):
    """Lets attention keep nothing but its output, as the fused kernels do and the one of the meta device does not."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, except attention."""
        if func is nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class AliveBytes(TorchDispatchMode):
    """Adds up the sizes of the tensors that were made inside and are alive; views count once.

    Args:
        model: Its weights do not count.

    Attributes:
        now: Bytes alive.
        peak: The most there were.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakSet(
            tensor.untyped_storage() for tensors in (model.parameters(), model.buffers()) for tensor in tensors
        )

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and count what it makes."""
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, made)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self._change(storage.nbytes())
            finalize(storage, self._change, -storage.nbytes())

    def _change(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True)
class Need:
    """Bytes beside the weights.

    Args:
        features: The image features of all tiles.
        vision: What the vision encoder and the projector need besides, at most.
        cache: Keys and values of the whole text.
        reading: What the language model needs besides while it reads the prompt, at most.
    """

    features: int
    vision: int
    cache: int
    reading: int

    @property
    def peak(self) -> int:
        """Everything on one GPU: pictures first, then text."""
        return self.features + max(self.vision, self.cache + self.reading)


class Layout:
    """A model without weights.

    Args:
        name: A key of `models.LAYOUTS`.
        precision: A key of `PRECISIONS`.

    Attributes:
        model: The model with every weight as it is stored. It cannot run, but sizes of parameters add up to the truth.
        quantized: Shapes (out, in) of the weights that the precision is for.
    """

    def __init__(self, name: str, precision: str = "bf16") -> None:
        self.name, self.precision = name, precision
        self.model = copy.deepcopy(build_empty(name))
        self.quantized: list[tuple[int, int]] = []
        stored_as = PRECISIONS[precision]
        package = type(self.model).__module__.rpartition(".")[0]  # as which Transformers imported the code
        spared = sys.modules[f"{package}.quantization_internvl"].UNQUANTIZED
        for module_name, module in self.model.named_modules():
            if stored_as and isinstance(module, nn.Linear) and not module_name.startswith(spared):
                self.quantized.append(tuple(module.weight.shape))
                del module.weight
                for number, (shape, dtype) in enumerate(stored_as(*self.quantized[-1])):
                    tensor = torch.empty(shape, dtype=dtype, device="meta")
                    module.register_parameter(f"weight_{number}", nn.Parameter(tensor, requires_grad=False))

    def weights(self, part: str = "") -> int:
        """Return the bytes of the weights in a submodule."""
        return sum(parameter.nbytes for parameter in self.model.get_submodule(part).parameters())

    def need(self, num_tiles: int, vision_batch_size: int | None = None) -> Need:
        """Return what a picture of so many tiles needs beside the weights, see `need_in_16_bits`."""
        need = need_in_16_bits(self.name, num_tiles, vision_batch_size)
        num_tokens = num_tiles * self.model.num_image_token + TEXT_TOKENS
        return replace(need, reading=need.reading + self._extra(num_tokens))

    def _extra(self, num_tokens: int) -> int:
        """Return what the kernels of the quantized layers make on the way."""
        if self.precision == "nf4":  # the weight in 16 bits
            return max(2 * rows * columns for rows, columns in self.quantized)
        if self.precision == "int8":  # the input in a byte each, the product in four
            return max(num_tokens * (columns + 4 * rows) for rows, columns in self.quantized)
        return 0

    def most_tiles(self, capacity: int, vision_batch_size: int | None = None, on_cpu: tuple[str, ...] = ()) -> int:
        """Return the most tiles, up to `MAX_TILES`, that fit on one GPU; 0 if not even the weights do.

        Args:
            capacity: Bytes of the GPU.
            vision_batch_size: See `need`.
            on_cpu: Submodules whose weights wait in the CPU's memory; the largest of their parameters visits.

        Returns:
            The tiles, thumbnail included.
        """
        left = capacity - RESERVE - self.weights()
        for part in on_cpu:
            sizes = [parameter.nbytes for parameter in self.model.get_submodule(part).parameters()]
            left += sum(sizes) - max(sizes)
        if left <= 0:
            return 0
        if self.need(MAX_TILES, vision_batch_size).peak <= left:
            return MAX_TILES
        fitting, too_many = 0, MAX_TILES
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            fits = self.need(middle, vision_batch_size).peak <= left
            fitting, too_many = (middle, too_many) if fits else (fitting, middle)
        return fitting

    def place(self, num_gpus: int, max_memory: int) -> dict[str, int | str]:
        """Return where `device_map="auto"` puts what on GPUs that may hold `max_memory` bytes of weights each.

        What fits on none is on the "disk".
        """
        whole = self.model._no_split_modules
        limits = {**dict.fromkeys(range(num_gpus), max_memory), "cpu": 0}
        limits = get_balanced_memory(self.model, limits, no_split_module_classes=whole)
        # As bitsandbytes' quantizers have it; they are not asked, for they look for bitsandbytes and a GPU.
        share = 0.9 if self.quantized else 1
        limits = {device: limit * share for device, limit in limits.items()}
        return infer_auto_device_map(self.model, limits, no_split_module_classes=whole)

    def loads(self, device_map: dict[str, int | str], need: Need) -> dict[int | str, int]:
        """Return the peak of each device of a map, in bytes; activations in full wherever a layer needs any."""
        weights, caches = defaultdict(int), defaultdict(int)
        seeing, reading = set(), set()
        num_layers = self.model.config.llm_config.num_hidden_layers
        for name, parameter in self.model.named_parameters():
            device = _device_of(name, device_map)
            weights[device] += parameter.nbytes
            (reading if name.startswith("language_model.") else seeing).add(device)
        for number in range(num_layers):
            device = _device_of(f"language_model.model.layers.{number}.attention.wqkv", device_map)
            caches[device] += need.cache // num_layers
        return {
            device: held
            + need.features
            + max(need.vision if device in seeing else 0, caches[device] + (need.reading if device in reading else 0))
            for device, held in weights.items()
        }


@cache
def build_empty(name: str, num_layers: int | None = None) -> PreTrainedModel:
    """Build a model on the meta device, in bf16.

    Args:
        name: A key of `models.LAYOUTS`.
        num_layers: Layers of each part; None means as many as the config says.

    Returns:
        The model.
    """
    config = our_config(name)
    if num_layers is not None:
        config.vision_config.num_hidden_layers = config.llm_config.num_hidden_layers = num_layers
    with torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=True, dtype=torch.bfloat16).eval()


@cache
def need_in_16_bits(name: str, num_tiles: int, vision_batch_size: int | None = None) -> Need:
    """Run one picture of so many tiles, then `TEXT_TOKENS` of text, through a model, and add up what is alive.

    The model that runs has `SLIM_LAYERS` layers in each part: only keys and values pile up from layer to layer.

    Args:
        name: A key of `models.LAYOUTS`.
        num_tiles: Tiles, thumbnail included.
        vision_batch_size: Tiles at once; None means the config's number.

    Returns:
        The bytes.
    """
    model, num_layers = build_empty(name, SLIM_LAYERS), build_empty(name).config.llm_config.num_hidden_layers
    side = model.config.tile_size
    pixel_values = torch.empty(num_tiles, 3, side, side, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), FusedAttention(), AliveBytes(model) as seeing:
        features = model.get_image_features(pixel_values, vision_batch_size)
    num_tokens = features.shape[:2].numel() + TEXT_TOKENS
    inputs_embeds = torch.empty(1, num_tokens, features.shape[-1], dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), FusedAttention(), AliveBytes(model) as reading:
        past = DynamicCache()
        model(inputs_embeds=inputs_embeds, past_key_values=past, logits_to_keep=1)
    kept = [layer.keys.nbytes + layer.values.nbytes for layer in past.layers]
    return Need(
        features=features.nbytes,
        vision=seeing.peak - features.nbytes + pixel_values.nbytes,
        cache=kept[0] * num_layers,
        reading=reading.peak - sum(kept) + inputs_embeds.nbytes,
    )


def _device_of(name: str, device_map: dict[str, int | str]) -> int | str:
    """Return where a device map has a parameter: the entry of the innermost module that has one."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map[name]


def single_gpu_table(sizes: list[int]) -> str:
    """Lay out, as Markdown, what fits on one GPU of each size in GB (2³⁰ bytes)."""
    lines = [
        "| model | precision | weights | cache per tile | vision encoder per tile at once | "
        + " | ".join(f"{size} GB" for size in sizes)
        + " |",
        "|---" * (5 + len(sizes)) + "|",
    ]
    for name in PUBLISHED:
        for precision in PRECISIONS:
            for on_cpu in ((), ("vision_model",)):
                layout = Layout(name, precision)
                if on_cpu and name != "26b":
                    continue
                one, two = layout.need(1, 1), layout.need(2, 2)
                cells = [_cell(layout, size * GIB, on_cpu) for size in sizes]
                weights = layout.weights() - sum(layout.weights(part) for part in on_cpu)
                label = f"{precision}, vision encoder on the CPU" if on_cpu else precision
                lines.append(
                    f"| {name.upper()} | {label} | {weights / GIB:.1f} GiB | {(two.cache - one.cache) / MIB:.0f} MiB "
                    f"| {(two.vision - one.vision) / MIB:.0f} MiB | " + " | ".join(cells) + " |"
                )
    return "\n".join(lines)


def _cell(layout: Layout, capacity: int, on_cpu: tuple[str, ...]) -> str:
    """Return the most tiles with the config's `vision_batch_size`, and in brackets with 1 where that makes more."""
    usual = layout.most_tiles(capacity, None, on_cpu)
    slow = usual if usual == MAX_TILES else layout.most_tiles(capacity, 1, on_cpu)
    if not slow:
        return "–"
    return f"{usual}" if usual == slow else f"{usual} ({slow})"


def many_gpus_table(machines: list[str]) -> str:
    """Lay out, as Markdown, how full the GPUs of machines such as "2x24" get under `device_map="auto"`."""
    lines = [
        "| GPUs | precision | weights on each, GiB | fullest with 13 tiles | fullest with 41 tiles |",
        "|---" * 5 + "|",
    ]
    for precision in PRECISIONS:
        layout = Layout("26b", precision)
        for machine in machines:
            num_gpus, size = map(int, machine.split("x"))
            device_map = layout.place(num_gpus, size * GIB - HEADROOM)
            weights = layout.loads(device_map, Need(0, 0, 0, 0))
            if "disk" in weights:
                held = f"{layout.weights() / GIB:.1f} do not fit"
                cells = [held, "–", "–"]
            else:
                peaks = [max(layout.loads(device_map, layout.need(tiles)).values()) for tiles in (13, MAX_TILES)]
                held = ", ".join(f"{weights.get(gpu, 0) / GIB:.1f}" for gpu in range(num_gpus))
                cells = [held, *(_full(peak, size * GIB - RESERVE) for peak in peaks)]
            lines.append(f"| {num_gpus} × {size} GB | {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _full(peak: int, limit: int) -> str:
    return f"{peak / GIB:.1f} GiB" if peak <= limit else f"{peak / GIB:.1f} GiB: too much"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[24, 16, 12, 8], help="GB of the single GPUs")
    parser.add_argument("--gpus", nargs="*", default=["2x24", "4x16", "8x12"], help="machines, as NUMBERxGB")
    arguments = parser.parse_args()
    # The GPUs of the question need not exist.
    logging.getLogger("accelerate.utils.modeling").setLevel(logging.ERROR)
    if arguments.sizes:
        sys.stdout.write(single_gpu_table(arguments.sizes) + "\n\n")
    if arguments.gpus:
        sys.stdout.write(many_gpus_table(arguments.gpus) + "\n")


if __name__ == "__main__":
    main()
