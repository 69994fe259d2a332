"""An answer while it is made: `generate` in a thread of its own, and its tokens as text that can no longer change."""

import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .conversation_internvl import decode_answer


GenerationOptions = Mapping[str, Any] | GenerationConfig | None


class AnswerStream(BaseStreamer):
    """Hands an answer's text on as soon as it can no longer change.

    The whole answer is decoded at every token, since a tokenizer may still tidy the blanks of the last word; that word
    is held back until a blank, or a letter of a script without blanks, follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.pieces: Queue[str | None] = Queue()
        self.token_ids: list[int] | None = None
        self.given = 0  # letters handed on

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which is skipped, and then one token at a time."""
        if self.token_ids is None:
            self.token_ids = []
            return
        self.token_ids += value.flatten().tolist()
        text = self._text()
        self._give(text, len(text) if text and _is_ideograph(text[-1]) else text.rfind(" "))

    def end(self) -> None:
        """Hand on the rest."""
        text = self._text().rstrip()
        self._give(text, len(text))
        self.close()

    def close(self) -> None:
        """End the iteration; more than once does no harm."""
        self.pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces.get, None)

    def _text(self) -> str:
        return decode_answer(self.tokenizer, self.token_ids or [], self.stop).lstrip()

    def _give(self, text: str, until: int) -> None:
        if until > self.given:
            self.pieces.put(text[self.given : until])
            self.given = until


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
    tokenizer: PreTrainedTokenizerBase,
    stop: str,
    generation_config: GenerationOptions,
    ask: Callable[[dict[str, Any], BaseStreamer], Any],
) -> Iterator[str]:
    """Yield an answer while it is made by another thread.

    Args:
        tokenizer: Decodes the answer.
        stop: The text that ends it.
        generation_config: What the caller wants of `generate`.
        ask: Makes the answer with the options and the streamer that it is given.

    Yields:
        Pieces of text, which together are the answer. Closing the iterator stops the model at its next token.
    """
    streamer, listening = AnswerStream(tokenizer, stop), _Cancelled()
    options = generation_kwargs(generation_config)
    options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", ()), listening])
    with ThreadPoolExecutor(max_workers=1) as executor:
        answer = executor.submit(ask, options, streamer)
        # Ends the stream also when it fails before there is a token; the error is raised below.
        answer.add_done_callback(lambda _: streamer.close())
        try:
            yield from streamer
        finally:
            listening.cancelled = True
        answer.result()


def generation_kwargs(generation_config: GenerationOptions) -> dict[str, Any]:
    """Return options as keyword arguments of `generate`; the caller's objects stay as they are.

    Raises:
        ValueError: If they are no options.
    """
    if not isinstance(generation_config, (Mapping, GenerationConfig, type(None))):
        raise ValueError(
            f'generation_config is {generation_config!r}; expected a dict such as {{"max_new_tokens": 64}}, or a '
            "GenerationConfig."
        )
    if isinstance(generation_config, GenerationConfig):
        return {"generation_config": copy.deepcopy(generation_config)}
    return dict(generation_config or {})


def in_one_place(options: Mapping[str, Any]) -> dict[str, Any]:
    """Put options that stand beside a GenerationConfig into it, for Transformers means to refuse both together.

    Args:
        options: Keyword arguments of `generate`.

    Returns:
        The same, with a GenerationConfig of its own if there is one.
    """
    rest = dict(options)
    config = copy.deepcopy(rest.pop("generation_config", None))
    return rest if config is None else {"generation_config": config, **config.update(**rest)}
