"""How do time and memory grow with tiles, pictures and turns?

    python -m benchmarks.growth --layout 2b --tiles 1 7 13 25 41

Tiles: one picture of so many. Pictures: so many of one tile each. Turns: the wait for the first token of the next
question after so many turns about a picture of 13 tiles, in a session and by `chat`. Writes a plot beside the data.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.models import OURS, WHO, answer_options, build, load_tokenizer, make_inputs
from benchmarks.second_turn import SESSION, STATELESS


PICTURE_COUNTS = (1, 4, 12)
TURN_COUNTS = (1, 2, 4, 8)
TILES_OF_TURNS = 13


def grow_tiles(options: Any) -> list[dict]:
    """Measure one answer about a picture, for each number of tiles, in a process of its own."""
    content = []
    for num_tiles in options.tiles:
        answers = {who: measure.in_child("memory", options, who=who, tiles=num_tiles) for who in WHO}
        seconds = {who: [1000 * answer["first_token"]] for who, answer in answers.items()}
        memory = {who: [answer["bytes"] / measure.GIB] for who, answer in answers.items()}
        for quantity, samples, unit in (("first token", seconds, "ms"), ("memory", memory, "GiB")):
            new = measure.rows(f"{quantity}, {num_tiles} tiles", samples, unit)
            content += [{**row, "against": "tiles", "x": num_tiles, "quantity": quantity} for row in new]
    return content


def grow_pictures(options: Any, model: Any, tokenizer: Any) -> list[dict]:
    """Measure one answer about several pictures of one tile."""
    content, one_token = [], answer_options(model, tokenizer, new_tokens=1)
    for count in options.pictures:
        pixels = make_inputs(options.layout, count, options.device, options.dtype)["pixel_values"]
        settings = {"num_patches_list": [1] * count}
        question = "<image>\n" * count + "Compare them."
        call = {OURS: lambda p=pixels, q=question, s=settings: model.chat(tokenizer, p, q, one_token, **s)}
        samples = milliseconds(measure.in_turns(call, options.repeats))
        new = measure.rows(f"first token, {count} pictures", samples, "ms")
        content += [{**row, "against": "pictures", "x": count, "quantity": "first token"} for row in new]
    return content


def grow_turns(options: Any, model: Any, tokenizer: Any) -> list[dict]:
    """Measure the next question after several turns about one picture."""
    content, one_token = [], answer_options(model, tokenizer, new_tokens=1)
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
            new = measure.rows(f"first token after {count} turns", milliseconds(seconds), "ms", STATELESS)
            content += [{**row, "against": "turns", "x": count, "quantity": "first token"} for row in new]
    return content


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Convert samples in seconds."""
    return {who: [1000 * value for value in values] for who, values in seconds.items()}


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
    line = measure.parser(__doc__, tiles=(1, 7, 13, 25, 41), repeats=3)
    line.add_argument("--pictures", type=int, nargs="+", default=list(PICTURE_COUNTS), help="pictures of one tile")
    line.add_argument("--turns", type=int, nargs="+", default=list(TURN_COUNTS), help="turns before the question")
    options = line.parse_args()
    measure.prepare(options)
    content = grow_tiles(options)
    model = build(OURS, options.layout, options.device, options.dtype)
    tokenizer = load_tokenizer()
    content += grow_pictures(options, model, tokenizer) + grow_turns(options, model, tokenizer)
    path: Path = measure.write("growth", "How do time and memory grow?", options, content)
    plot(content).savefig(path.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
