"""Ask questions about a picture: shows how the picture is cut into tiles and streams the answers.

Usage: `python -m examples.chat [--model FOLDER] [--max-tiles N] [PICTURE QUESTION...]` in the repository's root;
without a picture, it asks about the examples, in English and in Chinese.
"""

import argparse
import sys
from pathlib import Path

from transformers import logging

from training.folders import load_model, load_processor


ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {
    "examples/shapes.png": ("What number is written?", "What colour is the circle?", "图中的五角星是什么颜色？"),
    "examples/sign.png": ("What does the blue text say?", "红色的文字写的是什么？"),
    "examples/receipt.png": ("What is the total?", "总价是多少？"),
}


def show_plan(path: str, plan: object, num_image_tokens: int) -> None:
    """Print the grid of tiles that the picture is cut into."""
    print(f"{path}: {plan.columns} × {plan.rows} tiles of {plan.tile_size} pixels", end="")
    print(f"{' and a thumbnail' if plan.has_thumbnail else ''}, {num_image_tokens} image tokens")
    for row in range(plan.rows):
        numbers = range(row * plan.columns + 1, (row + 1) * plan.columns + 1)
        print("  " + "".join(f"[{number:>2}]" for number in numbers))


def main() -> int:
    """Load, show the plan, stream the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", help="path of a picture (default: the examples)")
    parser.add_argument("questions", nargs="*", metavar="question", help="what to ask about it")
    parser.add_argument("--model", default="tiny", help="checkpoint folder (default: the embedded one)")
    parser.add_argument("--max-tiles", type=int, help="most tiles of the picture, thumbnail not counted")
    options = parser.parse_args()
    if options.picture and not (options.questions and all(map(str.strip, options.questions))):
        parser.error(f"no question about {options.picture}: give at least one after the picture")
    logging.disable_progress_bar()

    processor, model = load_processor(options.model), load_model(options.model)
    settings = {} if options.max_tiles is None else {"max_tiles": options.max_tiles}
    asked = {options.picture: options.questions} if options.picture else EXAMPLES
    for picture, questions in asked.items():
        path = picture if options.picture else str(ROOT / picture)
        plan = processor.image_processor.plan(path, **settings)
        show_plan(picture, plan, sum(processor.count_image_tokens(path, **settings)))
        tiles = processor.image_processor(path, **settings)["pixel_values"]
        for question in questions:
            print(f"> {question}")
            for piece in model.chat_stream(processor.tokenizer, tiles, question):
                print(piece, end="", flush=True)
            print("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
