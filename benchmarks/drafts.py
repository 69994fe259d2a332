"""How many tokens a second does a draft give, by looking them up in the prompt or from a smaller model?

    python -m benchmarks.drafts --layout 2b --tiles 1

The weights are random, so how often guesses are right is chosen: where the output heads are zero, every model says
token 0 and each guess is right; between random heads none is. What a checkpoint gains lies between the two. What
prompt lookup finds in practice is counted on the embedded checkpoint, which reads a receipt a second time.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks import measure
from benchmarks.models import LAYOUTS, OURS, build, make_inputs


GREEDY, LOOKUP, DRAFT = "greedy", "prompt lookup", "draft model"
# A draft of an eighth of the layers, with its own vision encoder.
LAYERS_KEPT = 8


def build_draft(options: argparse.Namespace) -> torch.nn.Module:
    """Make a model with the layout's vocabulary and an eighth of its layers."""
    layout = copy.deepcopy(LAYOUTS[options.layout])
    for part in ("vision_config", "llm_config"):
        layers = layout[part]["num_hidden_layers"]
        layout[part]["num_hidden_layers"] = max(1, layers // LAYERS_KEPT)
    LAYOUTS["draft"] = layout
    return build(OURS, "draft", options.device, options.dtype)


@contextmanager
def passes_of(model: torch.nn.Module) -> Iterator[list[int]]:
    """Count how often a model's forward runs; the one entry of the list is the count."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    handle = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def ways(draft: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Return the options of `generate` for each way."""
    draft.generation_config.num_assistant_tokens = 5
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return {GREEDY: {}, LOOKUP: {"prompt_lookup_num_tokens": 10}, DRAFT: {"assistant_model": draft}}


def rates(model: torch.nn.Module, inputs: dict, named: dict[str, dict], options: argparse.Namespace) -> list[dict]:
    """Measure the tokens a second of each way in turns."""
    passes: dict[str, float] = {}
    fixed = {"do_sample": False, "pad_token_id": 2, "eos_token_id": None, "max_new_tokens": options.new_tokens}

    def generate(way: str) -> Callable[[], None]:
        def call() -> None:
            with passes_of(model) as count:
                model.generate(**inputs, **fixed, **named[way])
            passes[way] = options.new_tokens / count[0]

        return call

    seconds = measure.in_turns({way: generate(way) for way in named}, options.repeats)
    speeds = {way: [options.new_tokens / value for value in values] for way, values in seconds.items()}
    rows = measure.rows("", speeds, "tokens/s", GREEDY)
    for row in rows:
        row["note"] = f"{passes[row['who']]:.2f} tokens a pass"
    return rows


def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure with guesses that are never and always right, then count what the embedded checkpoint finds."""
    model, draft = build(OURS, options.layout, options.device, options.dtype), build_draft(options)
    for num_tiles in options.tiles:
        inputs = make_inputs(options.layout, num_tiles, options.device, options.dtype)
        heads = [one.get_output_embeddings().weight for one in (model, draft)]
        for right in (False, True):
            saved = [head.detach().clone() for head in heads]
            for head in heads:
                head.data.mul_(0.0 if right else 1.0)
            case = f"{num_tiles} tiles, draft's guesses are {'always' if right else 'never'} right"
            yield [row | {"case": case} for row in rates(model, inputs, ways(draft), options)]
            for head, values in zip(heads, saved, strict=True):
                head.data.copy_(values)
    yield embedded(options)


def embedded(options: argparse.Namespace) -> list[dict]:
    """Measure prompt lookup on the embedded checkpoint, which reads a receipt a second time."""
    root = {"pretrained_model_name_or_path": measure.ROOT, "subfolder": "tiny", "trust_remote_code": True}
    model = AutoModelForImageTextToText.from_pretrained(**root, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(**root)
    image = Image.open(measure.ROOT / "examples" / "receipt.png")
    question = "Read the receipt line by line."
    answer = model.chat(processor.tokenizer, processor.image_processor(image)["pixel_values"], question)
    turns = [("user", question), ("assistant", answer), ("user", question)]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, {"type": "image", "image": image})
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    named = {GREEDY: {}, LOOKUP: {"prompt_lookup_num_tokens": 10}}
    case = "embedded checkpoint (float32), the receipt read again"
    return [row | {"case": case} for row in rates(model, dict(inputs), named, options)]


def main() -> None:
    """Measure and write the result."""
    line = measure.parser(__doc__, tiles=(1,), repeats=3)
    line.add_argument("--new-tokens", type=int, default=48, help="tokens of an answer")
    options = line.parse_args()
    measure.prepare(options)
    measure.write("drafts", "How many tokens a second does a draft give?", options, cases(options))


if __name__ == "__main__":
    main()
