"""How long is the wait for the first token, and how long for each one after it?

    python -m benchmarks.generation --layout 2b --tiles 1 7 13 41

The picture is cut into tiles beforehand; the first token comes after the vision encoder and the prompt. What each
further token takes is the median step of an answer.
"""

import argparse
import statistics
from collections.abc import Iterator
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


def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure the models in turns, for each number of tiles."""
    models = {who: build(who, options.layout, options.device, options.dtype) for who in WHO}
    for num_tiles in options.tiles:
        inputs = make_inputs(options.layout, num_tiles, options.device, options.dtype)
        first: dict[str, list[float]] = {who: [] for who in WHO}
        step: dict[str, list[float]] = {who: [] for who in WHO}
        for turn in range(options.repeats + 1):
            for who, model in models.items():
                measure.rest()
                times = step_times(model, inputs, options.new_tokens)
                if turn:
                    first[who].append(times[0])
                    step[who].append(statistics.median(b - a for a, b in zip(times, times[1:], strict=False)))
        yield [
            *measure.rows(f"{num_tiles} tiles, first token", measure.milliseconds(first), "ms", PEER),
            *measure.rows(f"{num_tiles} tiles, each further token", measure.milliseconds(step), "ms", PEER),
        ]


def main() -> None:
    """Measure and write the result."""
    line = measure.parser(__doc__, tiles=(1, 7, 13))
    line.add_argument("--new-tokens", type=int, default=16, help="tokens of an answer, at least 2")
    options = line.parse_args()
    if options.new_tokens < 2:
        line.error(f"--new-tokens is {options.new_tokens}, expected at least 2: one for the wait, one for a step")
    measure.prepare(options)
    measure.write("generation", "How long do the first and each further token take?", options, cases(options))


if __name__ == "__main__":
    main()
