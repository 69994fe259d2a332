"""Held-out accuracy of a checkpoint folder, by task and language: exact match of freely decoded answers.

Draws fresh pictures from seeds that training never uses, cuts them with the package's image processor and asks through
the package's `batch_chat`: what is measured is what a user gets. Prints a Markdown table.

    python -m training.evaluate --samples 100 --json results.json
"""

import argparse
import json
import logging
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from training.data import Batches, load_config
from training.prepare import ROOT, TINY
from training.questions import LANGUAGES, SMALL_TALK, TASKS, WORDINGS, Turn, facts, phrase


logger = logging.getLogger(__name__)
# Canvases are drawn for these grids of (columns, rows); how a picture is really cut is the image processor's affair.
CANVASES = ((1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (3, 2), (4, 3))
GROUPS = ("one tile", "several tiles", "no picture")


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Args:
        group: One of `GROUPS`.
        image: The picture, or None.
        turn: The question and its answer.
    """

    group: str
    image: Image.Image | None
    turn: Turn


@dataclass(frozen=True)
class Result:
    """Exact matches of one cell of the table.

    Args:
        task: What was asked for.
        language: Language of the questions.
        group: Kind of pictures.
        right: Exactly right answers.
        total: Questions.
    """

    task: str
    language: str
    group: str
    right: int
    total: int

    @property
    def percent(self) -> float:
        """Share of right answers, in percent."""
        return 100 * self.right / self.total


class Checkpoint:
    """A model with its tokenizer and image processor.

    Args:
        folder: Checkpoint folder; inside the repository, the code in its root is used.
        dtype: Name of the torch dtype to load in.
        max_tiles: Most tiles per picture; None means the folder's setting.
    """

    def __init__(self, folder: Path, dtype: str = "bfloat16", max_tiles: int | None = None) -> None:
        inside = folder.resolve().parent == ROOT
        place: dict[str, Any] = {"trust_remote_code": True} | ({"subfolder": folder.name} if inside else {})
        path = ROOT if inside else folder
        self.model = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype), **place).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path, **place)
        self.image_processor = AutoImageProcessor.from_pretrained(path, **place)
        self.options = {} if max_tiles is None else {"max_tiles": max_tiles}

    def num_tiles(self, image: Image.Image) -> int:
        """Count the tiles that a picture is cut into."""
        return self.image_processor.plan(image, **self.options).num_tiles

    def answers(self, questions: list[Question]) -> list[str]:
        """Answer questions, each about its own picture (all with a picture, or all without)."""
        pixel_values, num_tiles = None, None
        if questions[0].image is not None:
            parts = [
                self.image_processor(question.image, return_tensors="pt", **self.options)["pixel_values"]
                for question in questions
            ]
            pixel_values, num_tiles = torch.cat(parts).to(self.model.dtype), [len(part) for part in parts]
        return self.model.batch_chat(
            self.tokenizer,
            pixel_values,
            [question.turn.question for question in questions],
            generation_config={"max_new_tokens": 64, "do_sample": False},
            num_patches_list=num_tiles,
        )


def draw_questions(
    config: dict[str, Any], samples: int, seed: int, num_tiles: Callable[[Image.Image], int]
) -> Iterator[Question]:
    """Draw held-out pictures and questions.

    Args:
        config: The training configuration, for its kinds of pictures.
        samples: Questions for each task, language and group.
        seed: Seed of the pictures.
        num_tiles: Says into how many tiles a picture will be cut.

    Yields:
        The questions, small talk last.
    """
    batches = Batches(config, "joint", None)
    rng = random.Random(f"evaluation {seed}")
    one, several, none = GROUPS
    wanted = {(task, language, group): samples for task in TASKS for language in LANGUAGES for group in (one, several)}
    while any(wanted.values()):
        canvas = rng.choice(CANVASES)
        scene, group = batches.scene(rng, canvas), one if canvas == (1, 1) else several
        if (num_tiles(scene.image) == 1) != (group == one):
            continue  # a canvas for many tiles that is too small for them, or a single tile's that is too long
        for fact in facts(scene):
            language = rng.choice(LANGUAGES)
            turn = phrase(fact, language, rng.choice(WORDINGS[fact[0]][language]))
            if wanted[turn.task, language, group]:
                wanted[turn.task, language, group] -= 1
                yield Question(group, scene.image, turn)
    for question, answer in SMALL_TALK:
        yield Question(none, None, Turn("talk", "en" if question.isascii() else "zh", question, answer))


def exact(answer: str, expected: str) -> bool:
    """Compare an answer with the right one, without regard to case and surrounding space."""
    return answer.strip().casefold() == expected.strip().casefold()


def evaluate(
    checkpoint: Checkpoint, questions: list[Question], batch_size: int
) -> tuple[list[Result], list[dict[str, str]]]:
    """Ask everything and count.

    Args:
        checkpoint: Answers the questions.
        questions: From `draw_questions`.
        batch_size: Questions at a time.

    Returns:
        One result per task, language and group in order of appearance, and the wrong answers.
    """
    counts, mistakes = defaultdict(lambda: [0, 0]), []
    batches = []
    for group in dict.fromkeys(question.group for question in questions):
        members = [question for question in questions if question.group == group]
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    for batch in tqdm(batches, desc="evaluate", mininterval=5):
        for question, answer in zip(batch, checkpoint.answers(batch), strict=True):
            turn = question.turn
            right = exact(answer, turn.answer)
            count = counts[turn.task, turn.language, question.group]
            count[0] += right
            count[1] += 1
            if not right:
                mistakes.append({"group": question.group} | asdict(turn) | {"got": answer})
    return [Result(*key, *count) for key, count in counts.items()], mistakes


def table(results: list[Result]) -> str:
    """Lay results out as a Markdown table: a row per task, a column per group and language, percent exactly right."""
    present = {(result.group, result.language) for result in results}
    columns = [(group, language) for group in GROUPS for language in LANGUAGES if (group, language) in present]
    cells = {(result.task, result.group, result.language): f"{result.percent:.0f}" for result in results}
    lines = [
        "| task | " + " | ".join(f"{group}, {language}" for group, language in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for task in dict.fromkeys(result.task for result in results):
        row = [cells.get((task, *column), "") for column in columns]
        lines.append(f"| {task} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=TINY, help="checkpoint folder")
    parser.add_argument("--samples", type=int, default=100, help="questions for each task, language and group")
    parser.add_argument("--seed", type=int, default=1, help="seed of the held-out pictures")
    parser.add_argument("--dtype", default="bfloat16", help="torch dtype to load in")
    parser.add_argument("--max-tiles", type=int, help="most tiles per picture; default: the folder's setting")
    parser.add_argument("--batch-size", type=int, default=16, help="questions at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="file that receives results and wrong answers")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(arguments.threads)
    checkpoint = Checkpoint(arguments.folder, arguments.dtype, arguments.max_tiles)
    questions = list(draw_questions(load_config(), arguments.samples, arguments.seed, checkpoint.num_tiles))
    results, mistakes = evaluate(checkpoint, questions, arguments.batch_size)
    sys.stdout.write(table(results) + "\n")
    if arguments.json:
        content = {"results": [asdict(result) | {"percent": result.percent} for result in results]}
        arguments.json.write_text(json.dumps(content | {"mistakes": mistakes}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
