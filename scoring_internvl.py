"""How sure the model is: log-probabilities of the tokens of an answer that was generated, or of given ones.

They are natural logarithms of what the model itself says, `log_softmax` of its raw logits in float32: temperature,
penalties and other settings of `generate` choose the tokens and do not change the numbers.
Shape legend: `tokens` of one answer, `vocab`, `seq`, `hidden`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .cache_internvl import GrowingCache
from .conversation_internvl import turns_of_history
from .prompt_format_internvl import Turn
from .streaming_internvl import Answerer


# What `generate` must return for the log-probabilities of its answer; one answer is generated.
SCORED_OUTPUT = {"num_return_sequences": 1, "return_dict_in_generate": True, "output_logits": True}


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, and how likely the model finds each of its tokens.

    Attributes:
        text: What `chat` would return, or the choice as it was given.
        token_ids: Its tokens, the one that ends the answer included; an answer that was cut off has no such token.
        tokens: The same as the tokenizer's pieces.
        logprobs: The log-probability of each token after the prompt and the tokens before it.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """Log-probability of the whole."""
        return math.fsum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """Log-probability per token, to compare texts of different lengths."""
        return self.logprob / len(self.logprobs)


def scored_answer(answerer: Answerer, output: Any) -> ScoredAnswer:
    """Return a generated answer with its log-probabilities.

    Args:
        answerer: What generated it.
        output: What `Answerer.generate` returned, asked for `SCORED_OUTPUT`.

    Returns:
        The answer.
    """
    token_ids = output.sequences[0].tolist()
    # With beams: the row of each step's logits from which the answer's token was taken, and -1 after its end.
    beams = getattr(output, "beam_indices", None)
    rows = [0] * len(token_ids) if beams is None else [row for row in beams[0].tolist() if row >= 0]
    token_ids = token_ids[: len(rows)]
    steps = zip(output.logits, rows, token_ids, strict=False)  # beams that failed may have gone on for longer
    logprobs = [_logprobs(logits[row][None], [token_id])[0] for logits, row, token_id in steps]
    return scored(answerer, answerer.text(token_ids), token_ids, logprobs)


def scored(answerer: Answerer, text: str, token_ids: Sequence[int], logprobs: Sequence[float]) -> ScoredAnswer:
    """Join a text, its tokens and their log-probabilities."""
    tokens = answerer.tokenizer.convert_ids_to_tokens(list(token_ids))
    return ScoredAnswer(text, tuple(token_ids), tuple(tokens), tuple(logprobs))


def checked_choices(choices: Iterable[str]) -> list[str]:
    """Return the choices.

    Raises:
        ValueError: If there is none, or one is not text.
    """
    texts = list(choices) if isinstance(choices, Iterable) and not isinstance(choices, str) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"choices is {choices!r}; expected a list with at least one text.")
    return texts


def choice_ids(answerer: Answerer, question: str, choice: str, with_end: bool) -> list[int]:
    """Return a choice's tokens, as they follow the prompt in training.

    Raises:
        ValueError: If there are none.
    """
    turns = [*turns_of_history([], question, has_images=False), Turn("assistant", (choice,), is_learned=True)]
    pieces = answerer.encoder.encode(answerer.style, turns, awaits_answer=False)
    token_ids = pieces[-1].ids if with_end else pieces[-1].ids[:-1]  # the token that ends it is the last one
    if not token_ids:
        raise ValueError("A choice is empty, and without its end it has no tokens; leave it out or score its end.")
    return token_ids


def continuation_logprobs(
    model: PreTrainedModel, cache: GrowingCache, first: torch.Tensor, rows: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the log-probability of each token of each continuation of a prompt.

    Args:
        model: The model.
        cache: The prompt, in a cache that can be cropped; it is left as it was.
        first: Logits `(1, vocab)` after the prompt.
        rows: The tokens of each continuation.

    Returns:
        The log-probabilities of each.
    """
    scores = []
    for row in rows:
        logits, read = first, row[:-1]  # the logits after the last token are not needed
        if read:
            # A continuation is written behind the prompt, which is not copied for it.
            input_ids = torch.tensor([read], device=model.device)  # (1, tokens - 1)
            rest = model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits[0]
            cache.crop(-len(read))  # back to the prompt
            logits = torch.cat([first, rest])  # (tokens, vocab)
        scores.append(_logprobs(logits, row))
    return scores


def unshared_logprobs(model: PreTrainedModel, prompt_embeds: torch.Tensor, row: Sequence[int]) -> list[float]:
    """Return the log-probability of each token after a prompt `(1, seq, hidden)` that no cache can hold.

    Beyond the limit of dynamic RoPE the prompt's keys are turned by an angle that depends on the length of the whole.
    """
    row_embeds = model.get_input_embeddings()(torch.tensor([row], device=model.device))  # (1, tokens, hidden)
    inputs_embeds = torch.cat([prompt_embeds, row_embeds.to(prompt_embeds)], dim=1)  # (1, seq + tokens, hidden)
    logits = model(inputs_embeds=inputs_embeds, use_cache=False, logits_to_keep=len(row) + 1).logits[0]
    return _logprobs(logits[:-1], row)


def _logprobs(logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
    """Return the log-probability of each token under the logits `(tokens, vocab)` that predict it."""
    wanted = torch.tensor(token_ids, device=logits.device)[:, None]  # (tokens, 1)
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, wanted)[:, 0].tolist()
