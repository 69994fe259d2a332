"""How things are measured and written down: times in turns, peaks of memory, tables, JSON files.

A row of a result is one quantity of one subject in one case: `case`, `who`, `unit`, `median`, `low`, `high`, and
`ratio`, its median over that of the reference of the same case. What a plot needs comes on top: `against` what it is
drawn, at which `x`, and the `quantity`.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.durable import partial_path, write_text


RESULTS = Path(__file__).resolve().parent / "results"
REST_SECONDS = 0.02
ROOT = RESULTS.parent.parent
PACKAGES = ("torch", "torchvision", "transformers", "numpy", "pillow")
MODULES = {"pillow": "PIL"}  # where a package is imported under another name
GIB = 2**30


def parser(
    description: str | None,
    *,
    tiles: Sequence[int] = (),
    repeats: int = 5,
    has_model: bool = True,
    has_children: bool = False,
) -> argparse.ArgumentParser:
    """Make a command line with the options that a benchmark reads.

    Args:
        description: What the benchmark says of itself.
        tiles: Default of `--tiles`; empty for a benchmark that has no such option.
        repeats: Default of `--repeats`.
        has_model: Whether a model is measured: its sizes, device and dtype can be chosen.
        has_children: Whether each measurement has a process of its own, see `in_child`.

    Returns:
        The command line.
    """
    line = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if has_model:
        line.add_argument("--layout", choices=["tiny", "2b", "26b"], default="2b", help="sizes of the model")
        line.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        line.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    else:
        line.set_defaults(layout="any", device="cpu", dtype="float32")
    if tiles:
        line.add_argument("--tiles", type=int, nargs="+", default=list(tiles), help="of the picture, with thumbnail")
    how = "each in a new process" if has_children else "after one that is not kept"
    line.add_argument("--repeats", type=int, default=repeats, help=f"measurements of each, {how}")
    if has_children:
        line.add_argument("--child", help="for the processes that measure")
    line.add_argument("--threads", type=int, default=0, help="CPU threads of PyTorch; 0: its own choice")
    line.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    return line


def prepare(options: argparse.Namespace) -> None:
    """Apply the options that concern the whole process; `dtype` becomes PyTorch's."""
    if options.threads:
        torch.set_num_threads(options.threads)
    options.dtype = getattr(torch, options.dtype)


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time calls in turns, so that whatever else the machine does meets all of them.

    Args:
        calls: What to time, by name.
        repeats: How often; a first round warms up and is not kept.

    Returns:
        Seconds of every call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            rest()
            started = time.perf_counter()
            call()
            synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rest() -> None:
    """Let the former subject come to an end: OpenMP's threads look busily for more work for a while after a call."""
    synchronise()
    time.sleep(REST_SECONDS)


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Convert samples in seconds."""
    return {who: [1000 * value for value in values] for who, values in seconds.items()}


class StepClock:
    """A streamer for `generate` that notes when each token was there; seconds since it was made."""

    def __init__(self) -> None:
        synchronise()
        self._started, self._seen_prompt = time.perf_counter(), False
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note a token; the first call brings the prompt."""
        if self._seen_prompt:
            self.times.append(time.perf_counter() - self._started)
        self._seen_prompt = True

    def end(self) -> None:
        """Do nothing: required of streamers."""


class PeakMemory:
    """Context manager: how far memory rises above what it was at the start, in `bytes`.

    On the CPU the resident memory of the process is read every few milliseconds, and the kernel's own record counts if
    it was broken meanwhile; on a GPU PyTorch counts exactly.
    """

    def __init__(self, device: str) -> None:
        self.bytes = 0
        self._on_gpu = device.startswith("cuda")
        self._done = threading.Event()

    def __enter__(self) -> "PeakMemory":
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            self._start, self._record = resident(), record_resident()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._on_gpu:
            synchronise()
            self.bytes = torch.cuda.max_memory_allocated() - self._start
        else:
            self._done.set()
            self._thread.join()
            if record_resident() > self._record:
                self.bytes = max(self.bytes, record_resident() - self._start)

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident() - self._start)
            if self._done.wait(0.003):
                break


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def record_resident() -> int:
    """Return the most resident memory that this process ever had, in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(module: str, options: argparse.Namespace, **values: Any) -> dict[str, Any]:
    """Run `module` as a process of its own, so that its memory is nobody else's.

    Args:
        module: A benchmark that understands `--child`.
        options: The options of this process.
        **values: What the child is told, as JSON.

    Returns:
        What it wrote in its last line, as JSON.
    """
    shared = {name: getattr(options, name) for name in ("layout", "device", "threads")}
    values = {**shared, "dtype": dtype_name(options), **values}
    command = [sys.executable, "-m", f"benchmarks.{module}", "--child", json.dumps(values)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child_options(text: str) -> argparse.Namespace:
    """Read what `in_child` told this process."""
    options = argparse.Namespace(**json.loads(text))
    prepare(options)
    return options


def rows(
    case: str, samples: dict[str, Sequence[float]], unit: str, reference: str | None = None, **more: Any
) -> list[dict]:
    """Sum up the samples of one case.

    Args:
        case: What was asked, e.g. "7 tiles".
        samples: Numbers by subject.
        unit: Their unit.
        reference: The subject that the others are compared with; None for no comparison.
        **more: Further fields of every row.

    Returns:
        One row per subject.
    """
    base = statistics.median(samples[reference]) if reference in samples else None
    result = []
    for who, values in samples.items():
        median = statistics.median(values)
        ratio = median / base if base else None
        row = {"case": case, "who": who, "unit": unit, "median": median, "low": min(values), "high": max(values)}
        result.append({**row, "ratio": ratio, **more})
    return result


def table(content: Sequence[dict]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| case | | median | spread | ratio |", "|---|---|---:|---:|---:|"]
    for row in content:
        if "skipped" in row:
            lines.append(f"| {row['case']} | {row['who']} | skipped: {row['skipped']} | | |")
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        spread = f"{row['low']:.4g} to {row['high']:.4g}"
        note = f" ({row['note']})" if row.get("note") else ""
        lines.append(
            f"| {row['case']} | {row['who']}{note} | {row['median']:.4g} {row['unit']} | {spread} | {ratio} |"
        )
    return "\n".join(lines)


def write(name: str, question: str, options: argparse.Namespace, cases: Iterable[list[dict]]) -> Path:
    """Print the table and write the JSON file of a benchmark, case by case: a run that is stopped keeps what it has.

    Args:
        name: Of the benchmark's module.
        question: What it answers, in a line.
        options: Its options.
        cases: The rows of one case after the other; they are measured as they are asked for.

    Returns:
        The file, see `result_path`.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    path = result_path(name, options)
    result = {
        "name": name,
        "question": question,
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "layout": options.layout,
        "dtype": dtype_name(options),
        "machine": machine(options.device),
        "versions": versions(),
        "rows": [],
    }
    print(table([]))
    for new in cases:
        print(*table(new).splitlines()[2:], sep="\n", flush=True)  # without the head
        result["rows"] += new
        # Beside the file of the last time, which stays until this one is complete.
        write_text(partial_path(path), json.dumps(result, indent=1) + "\n")
    partial_path(path).replace(path)
    return path


def result_path(name: str, options: argparse.Namespace) -> Path:
    """Return the JSON file of a benchmark, named after its module, the layout, the dtype and the kind of device."""
    return options.output / f"{name}.{options.layout}.{dtype_name(options)}.{options.device.split(':')[0]}.json"


def dtype_name(options: argparse.Namespace) -> str:
    """Return the dtype that was asked for, such as "bfloat16", before `prepare` and after it."""
    return str(options.dtype).removeprefix("torch.")


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a file that `write` wrote."""
    return json.loads(path.read_text("utf-8"))["rows"]


def machine(device: str) -> str:
    """Describe what was measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, those that are installed."""
    installed = {name: version(name) for name in PACKAGES if importlib.util.find_spec(MODULES.get(name, name))}
    return {"python": platform.python_version(), **installed}
