"""An answer while it is generated: `generate` in another thread, and its tokens as text that no longer changes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Semaphore
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .answer_internvl import GenerationOptions, read_options
from .conversation_internvl import PromptEncoder
from .generation_internvl import training_between_steps
from .prompt_format_internvl import prompt_format


# A tokenizer looks at a token's neighbours and no further. Tokens before the last CONTEXT_TOKENS no longer change;
# beyond WINDOW_TOKENS, the first ones are decoded for the last time.
WINDOW_TOKENS, CONTEXT_TOKENS = 32, 8


class AnswerStream(BaseStreamer):
    """Passes an answer's text on as soon as it can no longer change.

    A tokenizer may still tidy the blanks of the last word; that word is held back until a blank, or a letter of a
    script without blanks, follows, or until it is longer than any word. Only the last tokens are decoded at each
    step, so the time is linear in the length of the answer.

    Args:
        tokenizer: Decodes the answer.
        stop: The text that ends it.
        header: What the format's answers begin with; it is left out.
        model: A model in training: the answer then waits, in the model's own modes, until its reader wants to go on.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: str, header: str = "", model: nn.Module | None = None
    ) -> None:
        self.encoder, self.stop, self.header, self.model = PromptEncoder(tokenizer), stop, header, model
        self.is_cancelled = False
        self.pieces: Queue[str | None] = Queue()
        self.wanted = Semaphore(0)  # pieces that the reader has asked for
        self.token_ids: list[int] | None = None  # the window; None before the prompt has come
        self.is_in_header = True
        self.is_first = True  # whether the window begins with the answer
        self.is_stopped = False  # whether the text that ends an answer was found
        self.given = 0  # characters of the window that were passed on

    @property
    def waits_for_reader(self) -> bool:
        """Whether the answer goes on only while somebody reads it."""
        return self.model is not None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which is skipped, and then new tokens."""
        if self.token_ids is None:
            self.token_ids = []
            return
        self.token_ids += value.flatten().tolist()  # (1,) or (1, tokens) of one sequence
        if self._skip_header() or self.is_stopped:
            return
        text = self._text()
        if self.is_stopped:
            return
        self._give(text, len(text) if text and _is_ideograph(text[-1]) else text.rfind(" "))
        if len(self.token_ids) > WINDOW_TOKENS:
            self._move_window(text)

    def end(self) -> None:
        """Pass on the rest."""
        # Without a complete header, what `decode` returns is passed on at once.
        if self.is_in_header:  # the header is not complete
            self.token_ids, self.is_in_header = self.token_ids or [], False
            text = self.encoder.decode(self.token_ids, self.stop, self.header).strip()
        else:
            text = self._text().rstrip()
        self._give(text, len(text))
        self.close()

    def close(self) -> None:
        """End the iteration; more than once does no harm."""
        self.pieces.put(None)

    def cancel(self) -> None:
        """Stop the model at its next token; from now on it waits for no reader."""
        self.is_cancelled, self.model = True, None
        self.wanted.release()

    def __iter__(self) -> Iterator[str]:
        while (piece := self.pieces.get()) is not None:
            yield piece
            self.wanted.release()

    def _skip_header(self) -> bool:
        """Drop the header's tokens once it is complete; say whether it is not."""
        if self.is_in_header and (start := self.encoder.answer_start(self.token_ids, self.header)) is not None:
            self.token_ids, self.is_in_header = self.token_ids[start:], False
        return self.is_in_header

    def _text(self) -> str:
        """Return the text of the window, up to the text that ends the answer."""
        text = self.encoder.decode_text(self.token_ids or [])
        text = text.lstrip() if self.is_first else text
        if self.stop and (found := text.find(self.stop, self.given)) >= 0:
            self.is_stopped = True
            return text[:found]
        return text

    def _give(self, text: str, until: int) -> None:
        until = len(text[: max(until, 0)].rstrip())  # an answer does not end in blanks
        if until <= self.given:
            return
        piece, self.given = text[self.given : until], until
        if (model := self.model) is None:
            self.pieces.put(piece)
            return
        # The worker waits here, in the training modes, until the reader asks for the next piece.
        with training_between_steps(model):
            self.pieces.put(piece)
            self.wanted.acquire()

    def _move_window(self, text: str) -> None:
        """Drop the first tokens, if the others alone end in the same text; else the next step tries again."""
        settled = self.encoder.decode_text(self.token_ids[:-CONTEXT_TOKENS])
        settled = settled.lstrip() if self.is_first else settled
        if text.startswith(settled):
            begun = range(len(self.stop), 0, -1)  # the text that ends the answer may have begun
            self._give(text, len(settled) - next((n for n in begun if settled.endswith(self.stop[:n])), 0))
        kept, rest = self.token_ids[-2 * CONTEXT_TOKENS :], text[self.given :]
        shorter = self.encoder.decode_text(kept)
        if shorter.endswith(rest) and len(shorter) > len(rest):
            self.token_ids, self.is_first, self.given = kept, False, len(shorter) - len(rest)


def _is_ideograph(letter: str) -> bool:
    """Say whether a letter is Chinese, Japanese or Korean, where words have no blanks between them."""
    return "\u2e80" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7af" or "\uff00" <= letter <= "\uffef"


class _Cancelled(StoppingCriteria):
    """Stops generation once its stream is cancelled."""

    def __init__(self, stream: AnswerStream) -> None:
        self.stream = stream

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.stream.is_cancelled, device=input_ids.device)  # (batch,)


def stream_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationOptions,
    ask: Callable[[dict[str, Any], AnswerStream], Any],
) -> Iterator[str]:
    """Yield an answer while another thread generates it.

    A model in training gets its modes back between two pieces, so that training may go on in the middle of an answer.

    Args:
        model: The model.
        tokenizer: Decodes the answer.
        generation_config: What the caller wants of `generate`.
        ask: Generates the answer with these options and this streamer.

    Yields:
        Pieces of text, which together are the answer. Closing the iterator stops the model at its next token.

    Raises:
        ValueError: If several sequences are asked for, or the options name a streamer of their own.
    """
    options = read_options(generation_config)
    _check_is_one_stream(options)
    style = prompt_format(model.config.template)
    is_training = any(module.training for module in model.modules())
    stream = AnswerStream(tokenizer, style.stop, style.answer_header, model if is_training else None)
    options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", ()), _Cancelled(stream)])
    with ThreadPoolExecutor(max_workers=1) as executor:
        answer = executor.submit(ask, options, stream)
        # Ends the stream also when it fails before there is a token; the error is raised below.
        answer.add_done_callback(lambda _: stream.close())
        try:
            yield from stream
        finally:
            stream.cancel()
        answer.result()


def _check_is_one_stream(options: dict[str, Any]) -> None:
    if "streamer" in options:
        raise ValueError("A stream yields the answer itself, but streamer is given too; leave it out or call chat().")
    config = options.get("generation_config")
    for name in ("num_return_sequences", "num_beams"):
        value = options.get(name, getattr(config, name, None))
        if value not in (None, 1):
            raise ValueError(f"{name} is {value}, but a stream is one sequence that is never revised; set it to 1.")
