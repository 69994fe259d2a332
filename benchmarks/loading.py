"""How long does loading take, and how far does memory rise, compared with the weights?

    python -m benchmarks.loading --layout 2b

A folder of sharded safetensors with random weights is written first and read by processes of their own. The file cache
is warm, and pages of mapped files count as resident.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText

from benchmarks import measure
from benchmarks.models import OURS, PEER, WHO, build


def child(text: str) -> dict[str, Any]:
    """Write a checkpoint, or load it and measure."""
    options = measure.child_options(text)
    if options.task == "write":
        model = build(options.who, options.layout, "cpu", options.dtype)
        model.save_pretrained(options.folder, max_shard_size=options.shard_size)
        return {"bytes": sum(value.numel() * value.element_size() for value in model.parameters())}
    with measure.PeakMemory("cpu") as peak:
        started = time.perf_counter()
        AutoModelForImageTextToText.from_pretrained(
            options.folder, trust_remote_code=options.who == OURS, dtype=options.dtype, device_map=options.device
        )
        measure.synchronise()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": peak.bytes}


def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Write the checkpoints and load them in turns."""
    seconds: dict[str, list[float]] = {who: [] for who in WHO}
    peaks: dict[str, list[float]] = {who: [] for who in WHO}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folders = {who: Path(place) / str(index) for index, who in enumerate(WHO)}
        weights = {}
        for who, folder in folders.items():
            told = {"who": who, "folder": str(folder), "task": "write", "shard_size": options.shard_size}
            weights[who] = measure.in_child("loading", options, **told)["bytes"]
        for file in measure.ROOT.glob("*.py"):
            shutil.copy(file, folders[OURS])
        for _ in range(options.repeats):
            for who, folder in folders.items():
                answer = measure.in_child("loading", options, who=who, folder=str(folder), task="load")
                seconds[who].append(answer["seconds"])
                peaks[who].append(answer["bytes"] / weights[who])
    yield measure.rows("time", seconds, "s", PEER)
    yield measure.rows("peak over weights", peaks, "x", PEER)


def main() -> None:
    """Measure and write the result."""
    line = measure.parser(__doc__, repeats=3, has_children=True)
    line.add_argument("--shard-size", default="2GB", help="largest file of the checkpoint")
    line.add_argument("--folder", type=Path, help="where the checkpoints are written for a while; default: temporary")
    options = line.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    measure.prepare(options)
    measure.write("loading", "How long does loading take, and how far does memory rise?", options, cases(options))


if __name__ == "__main__":
    main()
