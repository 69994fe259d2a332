"""Ask a question about a picture: shows how the picture is cut into tiles and streams the answer.

Usage: `python examples/chat.py [--model FOLDER] [--max-tiles N] PICTURE QUESTION`
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, logging


ROOT = Path(__file__).resolve().parent.parent


def show_plan(path: str, plan: object, num_image_tokens: int) -> None:
    """Print the grid of tiles that the picture is cut into."""
    print(f"{path}: {plan.columns} × {plan.rows} tiles of {plan.tile_size} pixels", end="")
    print(f"{' and a thumbnail' if plan.has_thumbnail else ''}, {num_image_tokens} image tokens")
    for row in range(plan.rows):
        numbers = range(row * plan.columns + 1, (row + 1) * plan.columns + 1)
        print("  " + "".join(f"[{number:>2}]" for number in numbers))


def main() -> int:
    """Load, show the plan, stream the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture")
    parser.add_argument("question")
    parser.add_argument("--model", default="tiny", help="checkpoint folder (default: the embedded one)")
    parser.add_argument("--max-tiles", type=int, help="most tiles of the picture, thumbnail not counted")
    options = parser.parse_args()
    logging.disable_progress_bar()

    # The embedded checkpoint has no code of its own: Transformers takes it from the repository's root.
    is_embedded = (ROOT / options.model).resolve() == ROOT / "tiny"
    folder, where = (ROOT, {"subfolder": "tiny"}) if is_embedded else (options.model, {})
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True, **where)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto", **where)

    settings = {} if options.max_tiles is None else {"max_tiles": options.max_tiles}
    plan = processor.image_processor.plan(options.picture, **settings)
    show_plan(options.picture, plan, sum(processor.count_image_tokens(options.picture, **settings)))

    tiles = processor.image_processor(options.picture, **settings)
    print(f"> {options.question}")
    for piece in model.chat_stream(processor.tokenizer, tiles["pixel_values"], options.question):
        print(piece, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
