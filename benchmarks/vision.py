"""How long does the vision encoder take, with pixel shuffle and projector?

python -m benchmarks.vision --layout 2b --tiles 1 7 13
"""

import argparse
from collections.abc import Iterator

import torch

from benchmarks import measure
from benchmarks.models import PEER, WHO, build, make_inputs


@torch.no_grad()
def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure the models in turns, for each number of tiles."""
    models = {who: build(who, options.layout, options.device, options.dtype) for who in WHO}
    for num_tiles in options.tiles:
        pixels = make_inputs(options.layout, num_tiles, options.device, options.dtype)["pixel_values"]
        calls = {
            who: lambda model=model, pixels=pixels: model.get_image_features(pixels) for who, model in models.items()
        }
        seconds = measure.in_turns(calls, options.repeats)
        yield measure.rows(f"{num_tiles} tiles", measure.milliseconds(seconds), "ms", PEER)


def main() -> None:
    """Measure and write the result."""
    options = measure.parser(__doc__, tiles=(1, 7, 13)).parse_args()
    measure.prepare(options)
    measure.write("vision", "How long does the vision encoder take?", options, cases(options))


if __name__ == "__main__":
    main()
