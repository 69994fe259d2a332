"""An answer while it is made: `generate` in a thread of its own, and its tokens as text that can no longer change."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Semaphore
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .conversation_internvl import decode_answer
from .generation_internvl import training_between_steps
from .options_internvl import GenerationOptions, read_options


# Tokens that are decoded together: a tokenizer looks at a token's neighbours, and at nothing further away.
WINDOW_TOKENS, CONTEXT_TOKENS = 64, 16


class AnswerStream(BaseStreamer):
    """Hands an answer's text on as soon as it can no longer change.

    A tokenizer may still tidy the blanks of the last word; that word is held back until a blank, or a letter of a
    script without blanks, follows. The last tokens are decoded at every step, the others no more, so the time grows
    with the length of the answer.

    Args:
        tokenizer: Decodes the answer.
        stop: The text that ends it.
        model: A model in training: the answer then waits, in the model's own modes, until its reader wants to go on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str, model: nn.Module | None = None) -> None:
        self.tokenizer, self.stop, self.model = tokenizer, stop, model
        self.pieces: Queue[str | None] = Queue()
        self.wanted = Semaphore(0)  # pieces that the reader has asked for
        self.token_ids: list[int] | None = None  # the window
        self.is_first = True  # whether the window begins with the answer
        self.given = 0  # letters of the window that were handed on

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which is skipped, and then new tokens."""
        if self.token_ids is None:
            self.token_ids = []
            return
        self.token_ids += value.flatten().tolist()
        text = self._text()
        self._give(text, len(text) if text and _is_ideograph(text[-1]) else text.rfind(" "))
        if len(self.token_ids) > WINDOW_TOKENS:
            self._move_window(text)

    def end(self) -> None:
        """Hand on the rest."""
        text = self._text().rstrip()
        self._give(text, len(text))
        self.close()

    def close(self) -> None:
        """End the iteration; more than once does no harm."""
        self.pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        while (piece := self.pieces.get()) is not None:
            yield piece
            self.wanted.release()

    def _text(self) -> str:
        text = decode_answer(self.tokenizer, self.token_ids or [], self.stop)
        return text.lstrip() if self.is_first else text

    def _give(self, text: str, until: int) -> None:
        if until <= self.given:
            return
        piece, self.given = text[self.given : until], until
        if self.model is None:
            self.pieces.put(piece)
            return
        with training_between_steps(self.model):
            self.pieces.put(piece)
            self.wanted.acquire()

    def _move_window(self, text: str) -> None:
        """Drop the first tokens, if the others alone end in the same text; else the next step tries again."""
        kept, rest = self.token_ids[-CONTEXT_TOKENS:], text[self.given :]
        shorter = decode_answer(self.tokenizer, kept, self.stop)
        if shorter.endswith(rest) and len(shorter) > len(rest):
            self.token_ids, self.is_first, self.given = kept, False, len(shorter) - len(rest)


def _is_ideograph(letter: str) -> bool:
    """Say whether a letter is Chinese, Japanese or Korean, where words have no blanks between them."""
    return "\u2e80" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7af" or "\uff00" <= letter <= "\uffef"


class _Cancelled(StoppingCriteria):
    """Stops generation once nobody listens any more."""

    def __init__(self) -> None:
        self.cancelled = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.cancelled, device=input_ids.device)


def stream_answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stop: str,
    generation_config: GenerationOptions,
    ask: Callable[[dict[str, Any], BaseStreamer], Any],
) -> Iterator[str]:
    """Yield an answer while it is made by another thread.

    A model in training is given back to it between two pieces, so that training may go on in the middle of an answer.

    Args:
        model: Makes the answer.
        tokenizer: Decodes the answer.
        stop: The text that ends it.
        generation_config: What the caller wants of `generate`.
        ask: Makes the answer with the options and the streamer that it is given.

    Yields:
        Pieces of text, which together are the answer. Closing the iterator stops the model at its next token.

    Raises:
        ValueError: If several sequences are asked for, or the options name a streamer of their own.
    """
    options = read_options(generation_config)
    _check_is_one_stream(options)
    is_training = any(module.training for module in model.modules())
    streamer, listening = AnswerStream(tokenizer, stop, model if is_training else None), _Cancelled()
    options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", ()), listening])
    with ThreadPoolExecutor(max_workers=1) as executor:
        answer = executor.submit(ask, options, streamer)
        # Ends the stream also when it fails before there is a token; the error is raised below.
        answer.add_done_callback(lambda _: streamer.close())
        try:
            yield from streamer
        finally:
            listening.cancelled = True
            streamer.model = None  # nobody is left to wait for
            streamer.wanted.release()
        answer.result()


def _check_is_one_stream(options: dict[str, Any]) -> None:
    if "streamer" in options:
        raise ValueError("A stream yields the answer itself, but streamer is given too; leave it out or call chat().")
    config = options.get("generation_config")
    for name in ("num_return_sequences", "num_beams"):
        value = options.get(name, getattr(config, name, None))
        if value not in (None, 1):
            raise ValueError(f"{name} is {value}, but a stream is one sequence that is never revised; set it to 1.")
