"""How much memory does an answer take over the weights, and how long is the wait for its first token?

    python -m benchmarks.memory --layout 2b --tiles 7 13 41

Every number comes from a process of its own: on the CPU its resident memory, on a GPU what PyTorch has allocated. The
wait is that of the process's first answer, with all that is done only once; to compare it is left to `generation`.
"""

import argparse
import gc
import json
from collections.abc import Iterator
from typing import Any

from benchmarks import measure
from benchmarks.generation import step_times
from benchmarks.models import PEER, WHO, build, make_inputs


def child(text: str) -> dict[str, Any]:
    """Measure one answer of one model."""
    options = measure.child_options(text)
    model = build(options.who, options.layout, options.device, options.dtype)
    inputs = make_inputs(options.layout, options.tiles, options.device, options.dtype)
    gc.collect()
    with measure.PeakMemory(options.device) as peak:
        times = step_times(model, inputs, new_tokens=3)
    return {"bytes": peak.bytes, "first_token": times[0]}


def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure the models in turns, for each number of tiles; `growth` plots the rows."""
    for num_tiles in options.tiles:
        memory: dict[str, list[float]] = {who: [] for who in WHO}
        first: dict[str, list[float]] = {who: [] for who in WHO}
        for _ in range(options.repeats):
            for who in WHO:
                answer = measure.in_child("memory", options, who=who, tiles=num_tiles)
                memory[who].append(answer["bytes"] / measure.GIB)
                first[who].append(answer["first_token"])
        place = {"against": "tiles", "x": num_tiles}
        milliseconds = measure.milliseconds(first)
        yield [
            *measure.rows(f"{num_tiles} tiles, memory", memory, "GiB", PEER, quantity="memory", **place),
            *measure.rows(f"{num_tiles} tiles, first token", milliseconds, "ms", quantity="first token", **place),
        ]


def main() -> None:
    """Measure and write the result."""
    options = measure.parser(__doc__, tiles=(1, 7, 13, 25, 41), repeats=1, has_children=True).parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    measure.prepare(options)
    question = "How much memory does an answer take over the weights, and how long does the first one wait?"
    measure.write("memory", question, options, cases(options))


if __name__ == "__main__":
    main()
