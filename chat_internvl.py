"""Conversations with a model: `chat`, `batch_chat` and `chat_stream`.

The text of a conversation is made in `prompt_internvl.py`; pictures come as tiles and pass through to the model.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .prompt_internvl import (
    IMAGE_CONTEXT_TOKEN,
    IMAGE_END_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_START_TOKEN,
    History,
    decode_answer,
    encode_prompt,
    guard_text,
    place_images,
    prompt_format,
)


logger = logging.get_logger(__name__)

# The official default stops after 20 tokens, which no user expects; the model card's examples ask for this many.
DEFAULT_MAX_NEW_TOKENS = 1024
# What a GenerationConfig says where nobody said anything, in the releases that say something.
TRANSFORMERS_MAX_LENGTH = 20


class _AnswerDecoder:
    """Gives Transformers' streamers the decoding of `decode_answer`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str:
        return decode_answer(self.tokenizer, token_ids)


class _Cancelled(StoppingCriteria):
    """Stops generation once nobody listens any more."""

    def __init__(self) -> None:
        self.cancelled = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.cancelled, device=input_ids.device)


class ChatMixin:
    """Conversations for a model with `config`, `system_message`, `embed_inputs`, `generate`, `num_image_tokens_of`.

    Nothing that the caller passes is changed, nothing is printed, and no call leaves anything behind on the model.
    """

    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: Mapping[str, Any] | GenerationConfig | None = None,
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMAGE_START_TOKEN,
        IMG_END_TOKEN: str = IMAGE_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMAGE_CONTEXT_TOKEN,
        verbose: bool = False,
        streamer: BaseStreamer | None = None,
        system: str | None = None,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answer a question about pictures, or about none. Names and order of the first arguments are official.

        Args:
            tokenizer: The checkpoint's tokenizer.
            pixel_values: Tiles of all pictures `(tiles, 3, height, width)`, from the image processor; or None.
            question: The question. `<image>` marks where a picture stands; without any, and without history, the
                pictures stand in front.
            generation_config: What `generate` takes, as a dict or a GenerationConfig.
            history: Earlier (question, answer) pairs; their `<image>` take the first pictures.
            return_history: Whether to return the history with this turn added.
            num_patches_list: Tiles of each picture; None means that all tiles are one picture.
            IMG_START_TOKEN: Official argument; only the published token is possible.
            IMG_END_TOKEN: Official argument; only the published token is possible.
            IMG_CONTEXT_TOKEN: The token that marks the place of an image token.
            verbose: Whether to log the prompt.
            streamer: Receives tokens as they are made.
            system: System message of this call; None means the model's.

        Returns:
            The answer; with `return_history` also the new history.

        Raises:
            ValueError: If pictures, `<image>` and `num_patches_list` do not fit, history is not pairs of text, the
                template is unknown, or tiles hold NaN.
        """
        _check_fixed_tokens(IMG_START_TOKEN, IMG_END_TOKEN)
        history = _checked_history(history)
        num_tiles = _tiles_of_one_conversation(pixel_values, num_patches_list)
        if num_tiles and not history and IMAGE_PLACEHOLDER not in question:
            question = f"{IMAGE_PLACEHOLDER}\n{question}"
        prompt = self._prompt(tokenizer, pixel_values, question, history, num_tiles, IMG_CONTEXT_TOKEN, system)
        if verbose:
            logger.info(f"{0 if pixel_values is None else len(pixel_values)} tiles, prompt: {prompt}")
        (answer,) = self._answers(tokenizer, pixel_values, [prompt], generation_config, IMG_CONTEXT_TOKEN, streamer)
        return (answer, [*history, (question, answer)]) if return_history else answer

    def batch_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        questions: Sequence[str],
        generation_config: Mapping[str, Any] | GenerationConfig | None = None,
        num_patches_list: Sequence[int | Sequence[int]] | None = None,
        history: Sequence[History | None] | None = None,
        return_history: bool = False,
        IMG_START_TOKEN: str = IMAGE_START_TOKEN,
        IMG_END_TOKEN: str = IMAGE_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMAGE_CONTEXT_TOKEN,
        verbose: bool = False,
        image_counts: Sequence[int] | None = None,
        system: str | None = None,
    ) -> list[str] | tuple[list[str], list[list[tuple[str, str]]]]:
        """Answer several conversations at once; each answer is the one that `chat` gives.

        Args:
            tokenizer: See `chat`.
            pixel_values: Tiles of all pictures of all conversations in order, or None.
            questions: One question for each conversation, as in `chat`.
            generation_config: See `chat`.
            num_patches_list: For each conversation the tiles of its picture (0: no picture), or a list with the tiles
                of each of its pictures; None means no picture, or all tiles for a single question.
            history: For each conversation its history, or None.
            return_history: Whether to return the histories with this turn added.
            IMG_START_TOKEN: See `chat`.
            IMG_END_TOKEN: See `chat`.
            IMG_CONTEXT_TOKEN: See `chat`.
            verbose: Whether to log the prompts.
            image_counts: Old official name of `num_patches_list`.
            system: See `chat`.

        Returns:
            The answers; with `return_history` also the new histories.

        Raises:
            ValueError: If the lists differ in length, or as in `chat`.
        """
        _check_fixed_tokens(IMG_START_TOKEN, IMG_END_TOKEN)
        tiles = _tiles_of_each(pixel_values, questions, image_counts if num_patches_list is None else num_patches_list)
        histories = [_checked_history(one) for one in (history if history is not None else [None] * len(questions))]
        if len(histories) != len(questions):
            raise ValueError(f"There are {len(histories)} histories for {len(questions)} questions; give one each.")
        questions = [
            f"{IMAGE_PLACEHOLDER}\n{question}"
            if num_tiles and not past and IMAGE_PLACEHOLDER not in question
            else question
            for question, num_tiles, past in zip(questions, tiles, histories, strict=True)
        ]
        prompts = [
            self._prompt(tokenizer, pixel_values, question, past, num_tiles, IMG_CONTEXT_TOKEN, system)
            for question, num_tiles, past in zip(questions, tiles, histories, strict=True)
        ]
        if verbose:
            logger.info(f"{0 if pixel_values is None else len(pixel_values)} tiles, prompts: {prompts}")
        answers = self._answers(tokenizer, pixel_values, prompts, generation_config, IMG_CONTEXT_TOKEN)
        if not return_history:
            return answers
        turns = zip(histories, questions, answers, strict=True)
        return answers, [[*past, (question, answer)] for past, question, answer in turns]

    def chat_stream(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: Mapping[str, Any] | GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece while it is made; closing the iterator stops the model.

        Args:
            tokenizer: See `chat`.
            pixel_values: See `chat`.
            question: See `chat`.
            generation_config: See `chat`.
            **kwargs: Other arguments of `chat`.

        Yields:
            Pieces of text, which together are the answer.

        Raises:
            ValueError: As `chat`.
        """
        streamer = TextIteratorStreamer(_AnswerDecoder(tokenizer), skip_prompt=True)
        listening = _Cancelled()
        options = _generation_kwargs(generation_config)
        options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", ()), listening])
        with ThreadPoolExecutor(max_workers=1) as executor:
            answer = executor.submit(
                self.chat, tokenizer, pixel_values, question, options, streamer=streamer, **kwargs
            )
            # Ends the stream also when chat fails before it makes a token; the error is raised below.
            answer.add_done_callback(lambda _: streamer.text_queue.put(streamer.stop_signal))
            try:
                yield from _stripped(streamer)
            finally:
                listening.cancelled = True
            answer.result()

    def _prompt(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        question: str,
        history: History,
        num_tiles: Sequence[int],
        context_token: str,
        system: str | None,
    ) -> str:
        """Write one conversation, guarded, with places for its pictures."""
        history = [(guard_text(tokenizer, past), guard_text(tokenizer, answer)) for past, answer in history]
        question = guard_text(tokenizer, question)
        if pixel_values is not None:
            tile_tokens = self.num_image_tokens_of(*pixel_values.shape[-2:])
            history, question = place_images(history, question, num_tiles, tile_tokens, context_token)
        system_message = guard_text(tokenizer, self.system_message if system is None else system)
        return prompt_format(self.config.template).render(history, question, system_message)

    @torch.no_grad()
    def _answers(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        prompts: Sequence[str],
        generation_config: Mapping[str, Any] | GenerationConfig | None,
        context_token: str,
        streamer: BaseStreamer | None = None,
    ) -> list[str]:
        """Generate from prompts, padded on the left, and decode."""
        stop = prompt_format(self.config.template).stop
        options = _generation_kwargs(generation_config)
        self._fill_generation_kwargs(options, tokenizer, stop)
        input_ids, attention_mask = _left_padded([encode_prompt(tokenizer, prompt) for prompt in prompts])
        # Embeddings instead of ids, so that repetition penalties see the answer alone, as in the official code.
        inputs_embeds = self.embed_inputs(
            input_ids, pixel_values, image_token_id=tokenizer.convert_tokens_to_ids(context_token)
        )
        output = self.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask.to(inputs_embeds.device),
            streamer=streamer,
            **options,
        )
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        per_prompt = len(sequences) // len(prompts)  # num_return_sequences: the first is the best
        return [decode_answer(tokenizer, row, stop).strip() for row in sequences[::per_prompt].tolist()]

    def _fill_generation_kwargs(self, options: dict[str, Any], tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
        """Add what the caller left open: when to stop, what to pad with, how long an answer may be."""
        given = options.get("generation_config")
        known = given if given is not None else self.generation_config
        if options.get("eos_token_id") is None and (given is None or given.eos_token_id is None):
            ids = self.generation_config.eos_token_id
            ids = set(ids if isinstance(ids, list) else [ids])
            ids |= {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(stop)}
            options["eos_token_id"] = sorted(ids - {None, tokenizer.unk_token_id})
        if options.get("pad_token_id") is None and known.pad_token_id is None:
            options["pad_token_id"] = _pad_token_id(tokenizer)
        lengths = ("max_new_tokens", "max_length")
        is_open = known.max_new_tokens is None and known.max_length in (None, TRANSFORMERS_MAX_LENGTH)
        if is_open and all(options.get(name) is None for name in lengths):
            options["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS


def _generation_kwargs(generation_config: Mapping[str, Any] | GenerationConfig | None) -> dict[str, Any]:
    if isinstance(generation_config, GenerationConfig):
        return {"generation_config": copy.deepcopy(generation_config)}
    return dict(generation_config or {})


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    # Padding is masked, so any token will do where a tokenizer names none.
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _left_padded(rows: Sequence[Sequence[int]], pad_token_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask `(batch, longest)`. Padding is masked, so its id never matters."""
    longest = max(map(len, rows))
    input_ids = torch.tensor([[pad_token_id] * (longest - len(row)) + list(row) for row in rows])
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return input_ids, attention_mask


def _check_fixed_tokens(start: str, end: str) -> None:
    if (start, end) != (IMAGE_START_TOKEN, IMAGE_END_TOKEN):
        raise ValueError(
            f"IMG_START_TOKEN and IMG_END_TOKEN are {start!r} and {end!r}; every published checkpoint knows "
            f"{IMAGE_START_TOKEN!r} and {IMAGE_END_TOKEN!r}. Leave them out."
        )


def _checked_history(history: History | None) -> list[tuple[str, str]]:
    for index, pair in enumerate(history or ()):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(
                f"history[{index}] is {pair!r}; expected a pair of texts (question, answer), "
                "as chat(..., return_history=True) returns them."
            )
    return [tuple(pair) for pair in history or ()]


def _tiles_of_one_conversation(pixel_values: torch.Tensor | None, num_patches_list: Sequence[int] | None) -> list[int]:
    num_tiles = None if num_patches_list is None else _as_numbers(num_patches_list)
    if pixel_values is None:
        if num_tiles and sum(num_tiles):
            raise ValueError(f"num_patches_list is {num_tiles}, but pixel_values is None; give the tiles.")
        return []
    _check_tiles(pixel_values)
    num_tiles = [len(pixel_values)] if num_tiles is None else num_tiles
    if sum(num_tiles) != len(pixel_values):
        raise ValueError(
            f"num_patches_list {num_tiles} counts {sum(num_tiles)} tiles, but pixel_values has {len(pixel_values)}. "
            "Give the number of tiles of each picture, thumbnails included, as the image processor returns them."
        )
    return num_tiles


def _tiles_of_each(
    pixel_values: torch.Tensor | None, questions: Sequence[str], num_patches_list: Sequence[int | Sequence[int]] | None
) -> list[list[int]]:
    if isinstance(questions, str) or len(questions) == 0:
        raise ValueError(f"questions is {questions!r}; expected a list with at least one question.")
    if num_patches_list is None:
        if pixel_values is not None and len(questions) > 1:
            raise ValueError(
                f"There are {len(questions)} questions and {len(pixel_values)} tiles, but no num_patches_list; "
                "give the number of tiles for each question (0 for none)."
            )
        num_patches_list = [0 if pixel_values is None else len(pixel_values)] * len(questions)
    if len(num_patches_list) != len(questions):
        raise ValueError(
            f"num_patches_list has {len(num_patches_list)} entries for {len(questions)} questions; give one each "
            "(a list of numbers for a question about several pictures)."
        )
    tiles = [[one] if isinstance(one, int) else _as_numbers(one) for one in _as_numbers(num_patches_list)]
    tiles = [[] if one == [0] else one for one in tiles]
    _tiles_of_one_conversation(pixel_values, [count for one in tiles for count in one])
    return tiles


def _as_numbers(counts: Any) -> list[Any]:
    """Take counts as lists, arrays or tensors; the image processor returns the latter."""
    return counts.tolist() if hasattr(counts, "tolist") else list(counts)


def _check_tiles(pixel_values: torch.Tensor) -> None:
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4 or len(pixel_values) == 0:
        found = tuple(pixel_values.shape) if hasattr(pixel_values, "shape") else type(pixel_values).__name__
        raise ValueError(
            f"pixel_values is {found}; expected a tensor (tiles, 3, height, width) with at least one tile, "
            "from the image processor. Pass None to ask without a picture."
        )
    if not torch.isfinite(pixel_values).all():
        raise ValueError("pixel_values holds NaN or infinite values; check the picture and its preprocessing.")


def _stripped(pieces: Iterator[str]) -> Iterator[str]:
    """Yield pieces so that together they have no white space at either end."""
    held, started = "", False
    for piece in pieces:
        held += piece
        if not started:
            held = held.lstrip()
        ready = held.rstrip()
        if ready:
            started = True
            held = held[len(ready) :]
            yield ready
