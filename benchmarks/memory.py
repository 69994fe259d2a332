"""How much memory does an answer take over the weights?

    python -m benchmarks.memory --layout 2b --tiles 7 13 41

Every number comes from a process of its own: on the CPU its resident memory, on a GPU what PyTorch has allocated.
"""

import gc
import json
from typing import Any

from benchmarks import measure
from benchmarks.generation import step_times
from benchmarks.models import PEER, WHO, build, make_inputs


def child(text: str) -> dict[str, Any]:
    """Measure one answer of one model; also its wait for the first token."""
    options = measure.child_options(text)
    model = build(options.who, options.layout, options.device, options.dtype)
    inputs = make_inputs(options.layout, options.tiles, options.device, options.dtype)
    gc.collect()
    with measure.PeakMemory(options.device) as peak:
        times = step_times(model, inputs, new_tokens=3)
    return {"bytes": peak.bytes, "first_token": times[0]}


def main() -> None:
    """Measure and write the result."""
    line = measure.parser(__doc__, tiles=(7, 13, 41), repeats=3)
    line.add_argument("--child", help="for the processes that measure")
    options = line.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    measure.prepare(options)
    content = []
    for num_tiles in options.tiles:
        samples: dict[str, list[float]] = {who: [] for who in WHO}
        for _ in range(options.repeats):
            for who in WHO:
                answer = measure.in_child("memory", options, who=who, tiles=num_tiles)
                samples[who].append(answer["bytes"] / measure.GIB)
        content += measure.rows(f"{num_tiles} tiles", samples, "GiB", PEER)
    measure.write("memory", "How much memory does an answer take over the weights?", options, content)


if __name__ == "__main__":
    main()
