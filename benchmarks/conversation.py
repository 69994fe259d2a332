"""How does the package's own work grow with a conversation?

    python -m benchmarks.conversation

Collating conversations of 100 and 400 turns; streaming answers of 1000 and 4000 tokens, from a model that says them at
once; and the second turn of a session about an image of 41 tiles of 256 image tokens each. Everything is timed but
what Transformers' `generate` takes, which does nothing here. The second turn is timed in CPU time.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationMixin

from benchmarks import measure
from benchmarks.models import OURS, ROOT


TURN_COUNTS, TOKEN_COUNTS = (100, 400), (1000, 4000)
NUM_TILES, TILE_TOKENS = 41, 256
SENTENCE = "The quick brown fox jumps over the lazy dog, and 图中有一只猫。"


def collating(options: argparse.Namespace, processor: Any) -> list[dict]:
    """Time the collator with conversations of text."""
    collate, calls = processor.data_collator(), {}
    for count in TURN_COUNTS:
        roles = ("user", "assistant") * count
        messages = [{"role": role, "content": f"{SENTENCE} {index}"} for index, role in enumerate(roles)]
        calls[f"{count} turns"] = lambda row={"messages": messages}: collate([row])
    seconds = measure.in_turns(calls, options.repeats)
    return measure.rows("collating", measure.milliseconds(seconds), "ms", f"{TURN_COUNTS[0]} turns")


def streaming(options: argparse.Namespace, model: Any, tokenizer: Any) -> list[dict]:
    """Time streams of answers whose tokens are there already."""
    ids = tokenizer(SENTENCE * 400, add_special_tokens=False).input_ids

    def stream(count: int) -> None:
        def generate(self: Any, input_ids: torch.Tensor, *args: Any, streamer: Any, **kwargs: Any) -> torch.Tensor:
            streamer.put(input_ids)
            for token_id in ids[:count]:
                streamer.put(torch.tensor([token_id]))
            streamer.end()
            return torch.cat([input_ids, torch.tensor([ids[:count]])], dim=1)  # (1, seq + count)

        with mock.patch.object(GenerationMixin, "generate", generate):
            list(model.chat_stream(tokenizer, None, "Go on.", {"max_new_tokens": count}))

    calls = {f"{count} tokens": lambda count=count: stream(count) for count in TOKEN_COUNTS}
    seconds = measure.in_turns(calls, options.repeats)
    return measure.rows("streaming", measure.milliseconds(seconds), "ms", f"{TOKEN_COUNTS[0]} tokens")


def second_turn(options: argparse.Namespace, model: Any, tokenizer: Any) -> list[dict]:
    """Time second questions about one image, without what `generate` takes."""
    tile = torch.zeros(1, 3, model.config.tile_size, model.config.tile_size)
    features = torch.randn(NUM_TILES, TILE_TOKENS, model.config.llm_config.hidden_size)
    image = replace(model.encode_images(tile), features=features, num_tiles=(NUM_TILES,))
    config, inside = model.config.llm_config, [0.0]
    head_dim = config.hidden_size // config.num_attention_heads

    def generate(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        started = time.thread_time()
        cache = kwargs["cache"] if kwargs.get("past_key_values") is None else kwargs["past_key_values"]
        unread = input_ids.shape[1] - cache.get_seq_length()
        keys = torch.zeros(1, config.num_key_value_heads, unread, head_dim)
        for layer in range(config.num_hidden_layers):
            cache.update(keys, keys, layer)
        output = torch.cat([input_ids, input_ids[:, :1]], dim=1)  # (1, seq + 1)
        inside.append(time.thread_time() - started)
        return output

    milliseconds = []
    with mock.patch.object(GenerationMixin, "generate", generate), model.start_chat(tokenizer, image) as session:
        session.chat("What does this image show?")
        for number in range(options.repeats + 1):  # the first one warms up
            started = time.thread_time()
            session.chat(f"And question {number}?")
            milliseconds.append(1000 * (time.thread_time() - started - inside[-1]))
            session.rewind()
    return measure.rows(f"second turn, {NUM_TILES} tiles, without generate", {OURS: milliseconds[1:]}, "ms")


def cases(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Measure all three."""
    tiny = {"subfolder": "tiny", "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(ROOT, **tiny)
    config = AutoConfig.from_pretrained(ROOT, **tiny)
    config.llm_config.max_position_embeddings = 32768  # beyond it, dynamic RoPE lets no session keep its cache
    model = AutoModelForImageTextToText.from_pretrained(ROOT, dtype=torch.float32, config=config, **tiny)
    yield collating(options, processor)
    yield streaming(options, model, processor.tokenizer)
    yield second_turn(options, model, processor.tokenizer)


def main() -> None:
    """Measure and write the result."""
    options = measure.parser(__doc__, has_model=False).parse_args()
    measure.prepare(options)
    measure.write("conversation", "How does the package's own work grow with a conversation?", options, cases(options))


if __name__ == "__main__":
    main()
