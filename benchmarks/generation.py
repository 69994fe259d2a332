"""How long is the wait for the first token, and how long for each one after it?

    python -m benchmarks.generation --layout 2b --tiles 1 7 13 41

The first token comes after tiles, vision encoder and prompt; pictures are already tiles. Decoding is the median step.
"""

import statistics
from typing import Any

import torch

from benchmarks import measure
from benchmarks.models import PEER, WHO, build, make_inputs


def step_times(model: Any, inputs: dict[str, torch.Tensor], new_tokens: int) -> list[float]:
    """Generate greedily; return the seconds at which the tokens were there."""
    clock = measure.StepClock()
    model.generate(
        **inputs, streamer=clock, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=2
    )
    return clock.times


def main() -> None:
    """Measure and write the result."""
    line = measure.parser(__doc__)
    line.add_argument("--new-tokens", type=int, default=16, help="tokens of an answer")
    options = line.parse_args()
    measure.prepare(options)
    models = {who: build(who, options.layout, options.device, options.dtype) for who in WHO}
    content = []
    for num_tiles in options.tiles:
        inputs = make_inputs(options.layout, num_tiles, options.device, options.dtype)
        first: dict[str, list[float]] = {who: [] for who in WHO}
        step: dict[str, list[float]] = {who: [] for who in WHO}
        for turn in range(options.repeats + 1):
            for who, model in models.items():
                times = [1000 * seconds for seconds in step_times(model, inputs, options.new_tokens)]
                if turn:
                    first[who].append(times[0])
                    step[who].append(statistics.median(b - a for a, b in zip(times, times[1:], strict=False)))
        content += measure.rows(f"{num_tiles} tiles, first token", first, "ms", PEER)
        content += measure.rows(f"{num_tiles} tiles, each further token", step, "ms", PEER)
    measure.write("generation", "How long do the first and each further token take?", options, content)


if __name__ == "__main__":
    main()
