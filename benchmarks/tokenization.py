"""How long does text take to become tokens, and tokens text?

    python -m benchmarks.tokenization --folder FOLDER

The fast tokenizer, which AutoTokenizer loads by default, against the slow one (`backend="sentencepiece"`) of the same
folder: 256 conversations at once, one long text, and one answer decoded. Ids and texts must be equal.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks import measure


FAST, SLOW = "fast tokenizer", "slow tokenizer"
QUESTION = "What is written on the sign, and in which language? 图中的牌子上写了什么？ Answer in one sentence.\n"
TURN = f"<|im_start|>user\n<img>{'<IMG_CONTEXT>' * 64}</img>\n{QUESTION}<|im_end|><|im_start|>assistant\n"


def tasks(tokenizer: Any) -> dict[str, Callable[[], Any]]:
    """Return what is measured of a tokenizer, by name."""
    conversations = [TURN + f"{index} 🐼 shapes." for index in range(256)]
    long_text, answer = QUESTION * 200, tokenizer(QUESTION * 8).input_ids
    return {
        "256 conversations": lambda: tokenizer(conversations).input_ids,
        f"a text of {len(long_text)} characters": lambda: tokenizer(long_text).input_ids,
        "decoding an answer": lambda: tokenizer.decode(answer, spaces_between_special_tokens=True),
    }


def measure_task(name: str, calls: dict[str, Callable[[], Any]], repeats: int) -> list[dict]:
    """Measure one task with both tokenizers."""
    if calls[FAST]() != calls[SLOW]():
        sys.exit(f"The tokenizers differ in {name}; times would mean nothing.")
    return measure.rows(name, measure.milliseconds(measure.in_turns(calls, repeats)), "ms", SLOW)


def main() -> None:
    """Measure and write the result."""
    line = measure.parser(__doc__, repeats=7, has_model=False)
    line.add_argument("--folder", type=Path, default=measure.ROOT / "tiny", help="a folder with both tokenizers")
    options = line.parse_args()
    measure.prepare(options)
    code = {"trust_remote_code": True}
    if options.folder == measure.ROOT / "tiny":
        code["subfolder"], options.folder = "tiny", measure.ROOT
    by_name = {
        FAST: tasks(AutoTokenizer.from_pretrained(options.folder, **code)),
        SLOW: tasks(AutoTokenizer.from_pretrained(options.folder, backend="sentencepiece", **code)),
    }
    cases = (
        measure_task(name, {who: calls[name] for who, calls in by_name.items()}, options.repeats)
        for name in by_name[FAST]
    )
    measure.write("tokenization", "How long does text take to become tokens, and tokens text?", options, cases)


if __name__ == "__main__":
    main()
