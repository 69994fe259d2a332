"""How sure the model is: answers with the log-probabilities of their tokens, and scores of given choices.

Log-probabilities are natural logarithms of what the model itself says, `log_softmax` of its raw logits in float32:
temperature, penalties and other settings of `generate` choose the tokens and do not change the numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from .cache_internvl import GrowingCache, stretching_limit
from .chat_internvl import tiles_of_one_conversation
from .conversation_internvl import History, PromptEncoder, turns_of_history
from .generation_internvl import answering
from .image_features_internvl import EncodedImages
from .options_internvl import GenerationOptions
from .prompt_format_internvl import IMAGE_CONTEXT_TOKEN, Turn, prompt_format


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, and how likely the model finds each of its tokens.

    Attributes:
        text: What `chat` would return, or the choice as it was given.
        token_ids: Its tokens, the one that ends the answer included; there is none if the answer was cut off.
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


class ScoringMixin:
    """Scores for a model with `ChatMixin`; what the caller passes stays as it is."""

    @torch.no_grad()
    def chat_with_logprobs(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        question: str,
        generation_config: GenerationOptions = None,
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        system: str | None = None,
    ) -> ScoredAnswer | tuple[ScoredAnswer, list[tuple[str, str]]]:
        """Answer as `chat` does, and say how likely each token was.

        It costs no further pass; the logits are kept until the end, 4 bytes times the vocabulary for each token.

        Args:
            tokenizer: See `chat`.
            pixel_values: See `chat`.
            question: See `chat`.
            generation_config: See `chat`; one answer is made, whatever `num_return_sequences` says.
            history: See `chat`.
            return_history: See `chat`.
            num_patches_list: See `chat`.
            system: See `chat`.

        Returns:
            The answer; with `return_history` also the new history.

        Raises:
            ValueError: As `chat`.
        """
        num_tiles = tiles_of_one_conversation(pixel_values, num_patches_list)
        (turns,), prompts = self._open(tokenizer, pixel_values, [question], [history], [num_tiles], system)
        inputs = self._padded(prompts) | {"pixel_values": pixel_values}
        output = self._generate_answer(
            tokenizer,
            inputs,
            generation_config,
            num_return_sequences=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        token_ids = output.sequences[0].tolist()
        # With beams: the row of each step's logits from which the answer's token was taken, and -1 after its end.
        beams = getattr(output, "beam_indices", None)
        rows = [0] * len(token_ids) if beams is None else [row for row in beams[0].tolist() if row >= 0]
        token_ids = token_ids[: len(rows)]
        steps = zip(output.logits, rows, token_ids, strict=False)  # beams that failed may have gone on for longer
        logprobs = [_logprobs(logits[row][None], [token_id])[0] for logits, row, token_id in steps]
        answer = _scored(tokenizer, self._answer_text(tokenizer, token_ids), token_ids, logprobs)
        return (answer, [*turns[:-1], (turns[-1][0], answer.text)]) if return_history else answer

    @torch.no_grad()
    def score_choices(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        question: str,
        choices: Sequence[str],
        history: History | None = None,
        num_patches_list: Sequence[int] | None = None,
        system: str | None = None,
        with_end: bool = True,
    ) -> list[ScoredAnswer]:
        """Say how likely each of several answers is. Pictures and prompt are read once for all of them.

        Args:
            tokenizer: See `chat`.
            pixel_values: See `chat`.
            question: See `chat`.
            choices: The answers to score, of any lengths.
            history: See `chat`.
            num_patches_list: See `chat`.
            system: See `chat`.
            with_end: Whether a choice must be the whole answer: the token that ends it counts. Without, answers that
                merely begin with it count too, so "4" gets the share of "40".

        Returns:
            The choices in their order. The best has the largest `logprob`; the softmax of all is the share of each.

        Raises:
            ValueError: If there is no choice, one is not text or has no tokens; as `chat`.
        """
        texts = list(choices) if isinstance(choices, Iterable) and not isinstance(choices, str) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"choices is {choices!r}; expected a list with at least one text.")
        num_tiles = tiles_of_one_conversation(pixel_values, num_patches_list)
        (turns,), (prompt,) = self._open(tokenizer, pixel_values, [question], [history], [num_tiles], system)
        rows = [self._choice_ids(tokenizer, turns[-1][0], text, with_end) for text in texts]
        with answering(self):
            prompt_embeds = self.embed_inputs(
                self._padded([prompt])["input_ids"],
                pixel_values,
                image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT_TOKEN),
            )
            scores = self._continuation_logprobs(prompt_embeds, rows)
        return [_scored(tokenizer, *one) for one in zip(texts, rows, scores, strict=True)]

    def _choice_ids(self, tokenizer: PreTrainedTokenizerBase, question: str, choice: str, with_end: bool) -> list[int]:
        """Return a choice's tokens, as they follow the prompt when the model was trained."""
        turns = [*turns_of_history([], question, has_images=False), Turn("assistant", (choice,), is_learned=True)]
        encoder = PromptEncoder(tokenizer)
        pieces = encoder.encode(prompt_format(self.config.template), turns, awaits_answer=False)
        token_ids = pieces[-1].ids if with_end else pieces[-1].ids[:-1]  # the token that ends it is the last one
        if not token_ids:
            raise ValueError("A choice is empty, and without its end it has no tokens; leave it out or score its end.")
        return token_ids

    def _continuation_logprobs(self, prompt_embeds: torch.Tensor, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token of each continuation of one prompt `(1, seq, hidden)`."""
        longest = prompt_embeds.shape[1] + max(map(len, rows))
        limit = stretching_limit(self.config.llm_config)
        if limit is not None and longest > limit:
            # The prompt's keys are turned by an angle that depends on the length: nothing can be shared.
            return [self._unshared_logprobs(prompt_embeds, row) for row in rows]
        # A choice is written behind the prompt, which is not copied for it.
        cache = GrowingCache(self.config, croppable=True)
        first = self(inputs_embeds=prompt_embeds, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]
        scores = []
        for row in rows:
            logits, read = first, row[:-1]  # nothing is asked after the last token
            if read:
                input_ids = torch.tensor([read], device=self.device)
                rest = self(input_ids=input_ids, past_key_values=cache, use_cache=True).logits[0]
                cache.crop(-len(read))  # back to the prompt
                logits = torch.cat([first, rest])
            scores.append(_logprobs(logits, row))
        return scores

    def _unshared_logprobs(self, prompt_embeds: torch.Tensor, row: Sequence[int]) -> list[float]:
        row_embeds = self.get_input_embeddings()(torch.tensor([row], device=self.device))
        inputs_embeds = torch.cat([prompt_embeds, row_embeds.to(prompt_embeds)], dim=1)
        logits = self(inputs_embeds=inputs_embeds, use_cache=False, logits_to_keep=len(row) + 1).logits[0]
        return _logprobs(logits[:-1], row)


def _logprobs(logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
    """Return the log-probability of each token under the logits `(tokens, vocab)` at its place."""
    wanted = torch.tensor(token_ids, device=logits.device)
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, wanted[:, None])[:, 0].tolist()


def _scored(
    tokenizer: PreTrainedTokenizerBase, text: str, token_ids: Sequence[int], logprobs: Sequence[float]
) -> ScoredAnswer:
    tokens = tokenizer.convert_ids_to_tokens(list(token_ids))
    return ScoredAnswer(text, tuple(token_ids), tuple(tokens), tuple(logprobs))
