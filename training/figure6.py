"""The paper's Figure 6 in small: how well texts on a page are read, against the number of tiles.

Pages of 1000 × 1000 pixels hold texts in small or large letters, each in a colour of its own; the question is what the
text of one colour says. Every page is asked once for each number of tiles. Writes the data and the plot:

    python -m training.figure6
"""

import argparse
import json
import logging
import random
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from training.durable import save_figure, write_text
from training.evaluate import Checkpoint, Question
from training.metrics import exact
from training.pictures import NUMBER, WORD, Scene, draw_scene, random_number, random_text
from training.prepare import TINY
from training.questions import facts, phrase
from training.wordings import LANGUAGES, WORDINGS


logger = logging.getLogger(__name__)
MAX_TILES = (1, 2, 4, 6, 12, 24, 40)
PAGE = (1000, 1000)
# Name of the letters -> font sizes in pixels of the page.
SIZES = {"small letters (16-20 px)": (16, 20), "large letters (48-64 px)": (48, 64)}
KINDS = {"number": NUMBER, "word": WORD}
OUTPUT = Path(__file__).parent / "figure6"


def draw_pages(pages: int, seed: int, sizes: tuple[int, int]) -> list[Scene]:
    """Draw pages that hold one number and one word, the word one that training never shows.

    Args:
        pages: How many.
        seed: Seed of the pages.
        sizes: Smallest and largest font size in pixels.

    Returns:
        The pages.
    """
    rng = random.Random(f"figure 6 {seed} {sizes}")
    drawn = []
    for _ in range(pages):
        written = {NUMBER: random_number(rng, rng.randint(2, 4)), WORD: random_text(rng, WORD, held_out=True)}
        texts = [(kind, text, rng.uniform(*sizes)) for kind, text in written.items()]
        drawn.append(draw_scene(rng, PAGE, texts, shapes=0))
    return drawn


def measure(checkpoint: Checkpoint, scenes: list[Scene], seed: int) -> dict[str, float]:
    """Ask for every text of every page.

    Args:
        checkpoint: Answers the questions.
        scenes: The pages.
        seed: Seed of the wordings.

    Returns:
        Percent of exact answers by kind of text.
    """
    rng = random.Random(seed)
    right = {name: [] for name in KINDS}
    for scene in tqdm(scenes, desc=f"{checkpoint.options['max_tiles']} tiles", leave=False, mininterval=5):
        texts = {thing.text: thing.kind for thing in scene.texts}
        asked = [fact for fact in facts(scene) if fact.task == "text_by_colour"]
        turns = []
        for fact in asked:
            language = rng.choice(LANGUAGES)
            turns.append(phrase(fact, language, rng.choice(WORDINGS[fact.wording][language])))
        answers = checkpoint.answers([Question("page", (scene.image,), turn) for turn in turns])
        for turn, answer in zip(turns, answers, strict=True):
            name = next(name for name, kind in KINDS.items() if kind == texts[turn.answer])
            right[name].append(exact(answer, turn.answer))
    return {name: round(100 * sum(hits) / len(hits), 1) for name, hits in right.items()}


def plot(content: dict[str, Any]) -> Figure:
    """Draw the curves of what `main` writes to the data file."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(KINDS, ("#1f5fbf", "#c2571a"), strict=True))
    for (size, curves), style in zip(content["percent"].items(), ("-o", "--s"), strict=True):
        for kind, values in curves.items():
            axes.plot(range(len(MAX_TILES)), values, style, color=colours[kind], label=f"{kind}s, {size}")
    axes.set_xticks(range(len(MAX_TILES)), content["max_tiles"])
    axes.set(xlabel="most tiles per picture", ylabel="read exactly (%)", ylim=(-2, 102))
    axes.axvline(MAX_TILES.index(content["max_tiles_in_training"]), color="grey", linewidth=0.8, linestyle=":")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Measure, write the data and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=TINY, help="checkpoint folder")
    parser.add_argument("--pages", type=int, default=100, help="pages of each size of letters")
    parser.add_argument("--seed", type=int, default=1, help="seed of the pages")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="path of the files, without .json and .png")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(arguments.threads)
    checkpoint = Checkpoint(arguments.folder)
    percent = {name: {kind: [] for kind in KINDS} for name in SIZES}
    for name, sizes in SIZES.items():
        scenes = draw_pages(arguments.pages, arguments.seed, sizes)
        for most in MAX_TILES:
            checkpoint.options = {"max_tiles": most}
            for kind, value in measure(checkpoint, scenes, arguments.seed).items():
                percent[name][kind].append(value)
            logger.info("%s, %d tiles: %s", name, most, {kind: values[-1] for kind, values in percent[name].items()})
    content = {
        "max_tiles": MAX_TILES,
        "max_tiles_in_training": checkpoint.processor.image_processor.max_tiles,
        "pages": arguments.pages,
        "percent": percent,
    }
    write_text(arguments.output.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    save_figure(plot(content), arguments.output.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
