"""Held-out accuracy of a checkpoint folder, by task and language, of freely decoded greedy answers.

Draws fresh pictures from seeds that training never uses, with words that training never shows, and asks through the
package's processor and `generate`: what is measured is what a user gets. Prints a Markdown table.

    python -m training.evaluate --samples 100 --json results.json
"""

import argparse
import json
import logging
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import BitsAndBytesConfig

from training.data import ONE_TILE, Batches, load_config
from training.durable import write_text
from training.folders import load_model, load_processor
from training.metrics import anls, box_accuracy, exact, relaxed, vqa_accuracy
from training.pictures import HeldOut
from training.prepare import TINY
from training.questions import TASKS, Turn, about_image, facts, phrase
from training.wordings import LANGUAGES, SMALL_TALK, WORDINGS


logger = logging.getLogger(__name__)
# Kind of pictures -> grids of (columns, rows) that they are drawn for; how a picture is really cut is the image
# processor's affair.
CANVASES = {
    "one tile": (ONE_TILE,),
    "several tiles": ((2, 1), (1, 2), (3, 1), (2, 2), (3, 2), (2, 3), (4, 3)),
    "four tiles": ((2, 2),),
    "held-out fonts": (ONE_TILE,),
    "held-out layouts": (ONE_TILE,),
    "two pictures": (ONE_TILE,),
}
SMALL_TALK_GROUP = "no picture"
EVERYTHING = (*TASKS, "talk")
READING = ("digit", "number", "word", "line", "chinese", "text_by_colour", "receipt", "form", "chart_value")
# What is asked of each kind of pictures; everything where nothing is said.
ASKED = {
    "four tiles": ("text_by_colour",),
    "held-out fonts": READING,
    "held-out layouts": ("receipt", "form"),
    "two pictures": ("colour", "shape", "count", "number"),
}
# Task -> the layout of pictures that it is asked about; shapes where nothing is said.
LAYOUTS = {
    "digit": "number",
    "number": "number",
    "word": "text",
    "line": "text",
    "chinese": "text",
    "text_colour": "text",
    "text_by_colour": "texts",
    "receipt": "receipt",
    "form": "form",
    "chart_value": "chart",
    "chart_extreme": "chart",
}
# Lines are rare in training.
LINE_SHARE = 0.3
JUDGES: dict[str, Callable[[str, Turn], float]] = {
    "exact": lambda answer, turn: exact(answer, turn.answer),
    "anls": lambda answer, turn: anls(answer, [turn.answer]),
    "relaxed": lambda answer, turn: relaxed(answer, turn.answer),
    "vqa": lambda answer, turn: vqa_accuracy(answer, [turn.answer]),
    "box": lambda answer, turn: box_accuracy(answer, turn.named[0][1]),
}
QUANTIZATIONS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
# A caption of four shapes has the longest answer.
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Question:
    """One question about some pictures.

    Args:
        group: A key of `CANVASES`, or `SMALL_TALK_GROUP`.
        images: The pictures.
        turn: The question and its answer.
    """

    group: str
    images: tuple[Image.Image, ...]
    turn: Turn

    @property
    def message(self) -> dict[str, Any]:
        """The user's message; several pictures are numbered."""
        content = []
        for number, image in enumerate(self.images, start=1):
            if len(self.images) > 1:
                content.append({"type": "text", "text": f"Image-{number}: "})
            content.append({"type": "image", "image": image})
        return {"role": "user", "content": [*content, {"type": "text", "text": self.turn.question}]}


@dataclass(frozen=True)
class Result:
    """One cell of the table.

    Args:
        task: What was asked for.
        measure: How answers were judged, a key of `JUDGES`.
        language: Language of the questions.
        group: Kind of pictures.
        score: Sum of the scores of all answers.
        total: Questions.
    """

    task: str
    measure: str
    language: str
    group: str
    score: float
    total: int

    @property
    def percent(self) -> float:
        """Mean score in percent."""
        return 100 * self.score / self.total


class Checkpoint:
    """A model with its processor.

    Args:
        folder: Checkpoint folder with its code in it, or below the code as `tiny/` is.
        dtype: Name of the torch dtype to load in.
        quantization: A key of `QUANTIZATIONS`, which needs bitsandbytes, or None.
        max_tiles: Most tiles per picture; None means the folder's setting.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str = "bfloat16",
        quantization: str | None = None,
        max_tiles: int | None = None,
    ) -> None:
        options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
        if quantization:
            options["quantization_config"] = BitsAndBytesConfig(**QUANTIZATIONS[quantization])
        self.model = load_model(folder, **options).eval()
        self.processor = load_processor(folder)
        self.options = {} if max_tiles is None else {"max_tiles": max_tiles}

    def num_tiles(self, image: Image.Image) -> int:
        """Count the tiles that a picture is cut into."""
        return self.processor.image_processor.plan(image, **self.options).num_tiles

    @torch.inference_mode()
    def answers(self, questions: list[Question]) -> list[str]:
        """Answer questions, all with the same number of pictures."""
        inputs = self.processor.apply_chat_template(
            [[question.message] for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left", **self.options},
        )
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        output = self.model.generate(**inputs.to(self.model.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.post_process_image_text_to_text(new)


def draw_questions(
    config: dict[str, Any],
    samples: int,
    seed: int,
    num_tiles: Callable[[Image.Image], int],
    tasks: Collection[str] = EVERYTHING,
) -> Iterator[Question]:
    """Draw held-out pictures and questions.

    Args:
        config: The training configuration, for its kinds of pictures.
        samples: Questions for each task, language and kind of pictures.
        seed: Seed of the pictures.
        num_tiles: Says into how many tiles a picture will be cut.
        tasks: What to ask about, of `EVERYTHING`.

    Yields:
        The questions, small talk last.
    """
    batches = Batches(config, "joint", None)
    for group, canvases in CANVASES.items():
        rng = random.Random(f"evaluation {seed} {group}")
        asked = [task for task in ASKED.get(group, TASKS) if task in tasks]
        wanted = {(task, language): samples for task in asked for language in LANGUAGES}
        while any(wanted.values()):
            canvas = rng.choice(canvases)
            missing = rng.choice([task for (task, _), count in wanted.items() if count])
            layout = {LAYOUTS.get(missing, "shapes"): 1}
            batches.pictures = config["pictures"] | {"layouts": layout, "line_share": LINE_SHARE}
            scenes = [
                batches.scene(rng, canvas, HeldOut(True, group == "held-out fonts", group == "held-out layouts"))
                for _ in range(2 if group == "two pictures" else 1)
            ]
            images = tuple(scene.image for scene in scenes)
            if any((num_tiles(image) == 1) != (canvas == ONE_TILE) for image in images):
                continue  # a canvas for many tiles that is too small for them, or a single tile's that is too long
            meant = rng.randrange(len(scenes))
            for fact in facts(scenes[meant]):
                language = rng.choice(LANGUAGES)
                turn = phrase(fact, language, rng.choice(WORDINGS[fact.wording][language]))
                if wanted.get((turn.task, language)):
                    wanted[turn.task, language] -= 1
                    yield Question(group, images, about_image(turn, meant + 1) if len(scenes) > 1 else turn)
    for question, answer in SMALL_TALK if "talk" in tasks else ():
        turn = Turn("talk", "en" if question.isascii() else "zh", question, answer)
        yield Question(SMALL_TALK_GROUP, (), turn)


def evaluate(
    checkpoint: Checkpoint, questions: list[Question], batch_size: int
) -> tuple[list[Result], list[dict[str, Any]]]:
    """Ask everything and judge.

    Args:
        checkpoint: Answers the questions.
        questions: From `draw_questions`.
        batch_size: Questions at a time.

    Returns:
        One result per task, language and kind of pictures in order of appearance, and the answers that are not
        fully right.
    """
    scores, mistakes = defaultdict(list), []
    for batch in tqdm(_batches(checkpoint, questions, batch_size), desc="evaluate", mininterval=5):
        for question, answer in zip(batch, checkpoint.answers(batch), strict=True):
            turn = question.turn
            measure = TASKS.get(turn.task, "exact")
            score = JUDGES[measure](answer, turn)
            scores[turn.task, measure, turn.language, question.group].append(score)
            if score < 1:
                mistakes.append({"group": question.group} | asdict(turn) | {"got": answer})
    return [Result(*key, sum(found), len(found)) for key, found in scores.items()], mistakes


def _batches(checkpoint: Checkpoint, questions: list[Question], batch_size: int) -> list[list[Question]]:
    """Batch questions of the same number of pictures and tiles, so that nothing is padded by more than words."""
    alike = defaultdict(list)
    for question in questions:
        alike[tuple(map(checkpoint.num_tiles, question.images))].append(question)
    batches = []
    for num_tiles, members in alike.items():
        size = max(1, batch_size // max(1, sum(num_tiles)))
        batches += [members[start : start + size] for start in range(0, len(members), size)]
    return batches


def table(results: list[Result]) -> str:
    """Lay results out as a Markdown table of "English / Chinese" percents, a row per task."""
    groups = list(dict.fromkeys(result.group for result in results))
    cells = defaultdict(dict)
    for result in results:
        cells[result.task, result.group][result.language] = f"{result.percent:.0f}"
    lines = ["| task | measure | " + " | ".join(groups) + " |", "|---" * (len(groups) + 2) + "|"]
    for task, measure in dict.fromkeys((result.task, result.measure) for result in results):
        row = [" / ".join(cells[task, group].get(language, "") for language in LANGUAGES) for group in groups]
        lines.append(f"| {task} | {measure} | " + " | ".join("" if cell == " / " else cell for cell in row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=TINY, help="checkpoint folder")
    parser.add_argument(
        "--samples", type=int, default=100, help="questions for each task, language and kind of pictures"
    )
    parser.add_argument("--tasks", nargs="+", choices=EVERYTHING, default=EVERYTHING, help="what to ask about")
    parser.add_argument("--seed", type=int, default=1, help="seed of the held-out pictures")
    parser.add_argument("--dtype", default="bfloat16", help="torch dtype to load in")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="load with bitsandbytes")
    parser.add_argument("--max-tiles", type=int, help="most tiles per picture; default: the folder's setting")
    parser.add_argument("--batch-size", type=int, default=128, help="tiles at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="file that receives results and wrong answers")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(arguments.threads)
    checkpoint = Checkpoint(arguments.folder, arguments.dtype, arguments.quantization, arguments.max_tiles)
    questions = list(
        draw_questions(load_config(), arguments.samples, arguments.seed, checkpoint.num_tiles, arguments.tasks)
    )
    results, mistakes = evaluate(checkpoint, questions, arguments.batch_size)
    sys.stdout.write(table(results) + "\n")
    if arguments.json:
        content = {"results": [asdict(result) | {"percent": result.percent} for result in results]}
        write_text(arguments.json, json.dumps(content | {"mistakes": mistakes}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
