"""How do time and memory grow with tiles, pictures and turns?

    python -m benchmarks.memory --layout 2b
    python -m benchmarks.growth --layout 2b

Pictures: so many of one tile each, without a peer. Turns: the wait for the first token of the next question after so
many turns about a picture of 13 tiles, in a session and by `chat`. A plot is written beside the data; its curves over
tiles are what `memory` has written into the same folder.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.models import OURS, answer_options, build, load_tokenizer, make_inputs
from benchmarks.second_turn import SESSION, STATELESS
from training.durable import save_figure


PICTURE_COUNTS = (1, 4, 12)
TURN_COUNTS = (1, 2, 4, 8)
TILES_OF_TURNS = 13


def curve_of_tiles(options: argparse.Namespace) -> list[dict]:
    """Return what `memory` measured for the same layout, dtype and device; nothing, and a hint, if it did not."""
    path = measure.result_path("memory", options)
    if path.is_file():
        return measure.read_rows(path)
    command = f"python -m benchmarks.memory --layout {options.layout} --device {options.device}"
    command += f" --dtype {measure.dtype_name(options)}"
    print(f"The plot will have no tiles: found no {path.name} in {options.output}; for it, first run `{command}`.")
    return []


def grow_pictures(options: argparse.Namespace, model: Any, tokenizer: Any) -> Iterator[list[dict]]:
    """Measure one answer about several pictures of one tile."""
    one_token = answer_options(model, tokenizer, new_tokens=1)
    for count in options.pictures:
        pixels = make_inputs(options.layout, count, options.device, options.dtype)["pixel_values"]
        settings = {"num_patches_list": [1] * count}
        question = "<image>\n" * count + "Compare them."
        call = {OURS: lambda p=pixels, q=question, s=settings: model.chat(tokenizer, p, q, one_token, **s)}
        samples = measure.milliseconds(measure.in_turns(call, options.repeats))
        place = {"against": "pictures", "x": count, "quantity": "first token"}
        yield measure.rows(f"first token, {count} pictures", samples, "ms", **place)


def grow_turns(options: argparse.Namespace, model: Any, tokenizer: Any) -> Iterator[list[dict]]:
    """Measure the next question after several turns about one picture."""
    one_token = answer_options(model, tokenizer, new_tokens=1)
    pixels = make_inputs(options.layout, TILES_OF_TURNS, options.device, options.dtype)["pixel_values"]
    with model.start_chat(tokenizer, pixels, one_token) as session:
        for count in options.turns:
            while len(session.history) < count:
                session.chat(f"Question {len(session.history)}?")
            history = list(session.history)
            questions = (f"And question {i}?" for i in range(1000))

            def ask_session(questions=questions) -> None:  # noqa: ANN001
                session.chat(next(questions))
                session.rewind()

            def ask_again(questions=questions, history=history) -> None:  # noqa: ANN001
                model.chat(tokenizer, pixels, next(questions), one_token, history=history)

            seconds = measure.in_turns({SESSION: ask_session, STATELESS: ask_again}, options.repeats)
            samples = measure.milliseconds(seconds)
            place = {"against": "turns", "x": count, "quantity": "first token"}
            yield measure.rows(f"first token after {count} turns", samples, "ms", STATELESS, **place)


def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure what grows with pictures and with turns."""
    model, tokenizer = build(OURS, options.layout, options.device, options.dtype), load_tokenizer()
    yield from grow_pictures(options, model, tokenizer)
    yield from grow_turns(options, model, tokenizer)


def plot(content: list[dict]) -> Figure:
    """Draw every quantity against what grows, a curve for each subject."""
    panels = list(dict.fromkeys((row["against"], row["quantity"], row["unit"]) for row in content))
    figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        against, quantity, unit = panel
        chosen = [row for row in content if (row["against"], row["quantity"], row["unit"]) == panel]
        for who in dict.fromkeys(row["who"] for row in chosen):
            points = [(row["x"], row["median"]) for row in chosen if row["who"] == who]
            axes.plot(*zip(*points, strict=True), "-o", label=who)
        axes.set(xlabel=against, ylabel=f"{quantity} ({unit})", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Measure, write the result and draw the plot."""
    line = measure.parser(__doc__, repeats=3)
    line.add_argument("--pictures", type=int, nargs="+", default=list(PICTURE_COUNTS), help="pictures of one tile")
    line.add_argument("--turns", type=int, nargs="+", default=list(TURN_COUNTS), help="turns before the question")
    options = line.parse_args()
    measure.prepare(options)
    tiles = curve_of_tiles(options)
    path = measure.write("growth", "How do time and memory grow?", options, cases(options))
    save_figure(plot(tiles + measure.read_rows(path)), path.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
