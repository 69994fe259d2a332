"""How long does the vision encoder take, with pixel shuffle and projector?

python -m benchmarks.vision --layout 2b --tiles 1 7 13
"""

import torch

from benchmarks import measure
from benchmarks.models import PEER, WHO, build, make_inputs


@torch.no_grad()
def main() -> None:
    """Measure and write the result."""
    options = measure.parser(__doc__).parse_args()
    measure.prepare(options)
    models = {who: build(who, options.layout, options.device, options.dtype) for who in WHO}
    content = []
    for num_tiles in options.tiles:
        pixels = make_inputs(options.layout, num_tiles, options.device, options.dtype)["pixel_values"]
        calls = {
            who: lambda model=model, pixels=pixels: model.get_image_features(pixels) for who, model in models.items()
        }
        seconds = measure.in_turns(calls, options.repeats)
        samples = {who: [1000 * value for value in values] for who, values in seconds.items()}
        content += measure.rows(f"{num_tiles} tiles", samples, "ms", PEER)
    measure.write("vision", "How long does the vision encoder take?", options, content)


if __name__ == "__main__":
    main()
