"""Conversations with a model: `chat`, `batch_chat` and `chat_stream`.

The ids of a conversation are made in `conversation_internvl.py`; images come as tiles and pass to the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .conversation_internvl import History, decode_answer, encode_conversation, turns_of_history
from .image_features_internvl import EncodedImages
from .options_internvl import GenerationOptions, answer_options, read_options, seeing_answer_alone
from .prompt_format_internvl import (
    IMAGE_CONTEXT_TOKEN,
    IMAGE_END_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_START_TOKEN,
    prompt_format,
)
from .streaming_internvl import stream_answer


logger = logging.get_logger(__name__)

# What of a prompt's inputs goes to the device of the embedding.
PROMPT_NAMES = ("input_ids", "attention_mask")


class ChatMixin:
    """Conversations for a model with `config`, `system_message`, `embed_inputs`, `generate`, `num_image_tokens_of`.

    Nothing that the caller passes is changed, nothing is printed, and no call leaves anything behind on the model.
    """

    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        question: str,
        generation_config: GenerationOptions = None,
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMAGE_START_TOKEN,
        IMG_END_TOKEN: str = IMAGE_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMAGE_CONTEXT_TOKEN,
        verbose: bool = False,
        streamer: BaseStreamer | None = None,
        system: str | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answer a question about pictures, or about none. Names and order of the first arguments are official.

        Args:
            tokenizer: The checkpoint's tokenizer.
            pixel_values: Tiles of all pictures `(tiles, 3, height, width)`, from the image processor; what
                `encode_images` made of them; or None.
            question: The question. `<image>` marks where a picture stands; without any, and without history, the
                pictures stand in front.
            generation_config: What `generate` takes, as a dict or a GenerationConfig.
            history: Earlier (question, answer) pairs; their `<image>` take the first pictures.
            return_history: Whether to return the history with this turn added.
            num_patches_list: Tiles of each picture; None means that all tiles are one picture, unless
                `encode_images` was told otherwise.
            IMG_START_TOKEN: Official argument; only the published token is possible.
            IMG_END_TOKEN: Official argument; only the published token is possible.
            IMG_CONTEXT_TOKEN: Official argument; only the published token is possible.
            verbose: Whether to log the prompt.
            streamer: Receives tokens as they are made.
            system: System message of this call; None means the model's.
            rope_pos_id_version: See `generate`; elsewhere it is one of the options in `generation_config`.
            rope_pos_id_stride: See `generate`.

        Returns:
            The answer; with `return_history` also the new history.

        Raises:
            ValueError: If pictures, `<image>` and `num_patches_list` do not fit, history is not pairs of text, the
                template is unknown, or tiles hold NaN.
        """
        _check_fixed_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        num_tiles = tiles_of_one_conversation(pixel_values, num_patches_list)
        positions = {"rope_pos_id_version": rope_pos_id_version, "rope_pos_id_stride": rope_pos_id_stride}
        positions = {name: value for name, value in positions.items() if value is not None}
        generation_config = read_options(generation_config) | positions if positions else generation_config
        (turns,) = self._converse(
            tokenizer, pixel_values, [question], [history], [num_tiles], generation_config, system, verbose, streamer
        )
        answer = turns[-1][1]
        return (answer, turns) if return_history else answer

    def batch_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        questions: Sequence[str],
        generation_config: GenerationOptions = None,
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
            pixel_values: Tiles of all pictures of all conversations in order, encoded or not, or None.
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
        _check_fixed_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        num_tiles = _tiles_of_each(
            pixel_values, questions, image_counts if num_patches_list is None else num_patches_list
        )
        histories = [None] * len(questions) if history is None else list(history)
        if len(histories) != len(questions):
            raise ValueError(f"There are {len(histories)} histories for {len(questions)} questions; give one each.")
        turns = self._converse(
            tokenizer, pixel_values, questions, histories, num_tiles, generation_config, system, verbose
        )
        answers = [conversation[-1][1] for conversation in turns]
        return (answers, turns) if return_history else answers

    def chat_stream(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        question: str,
        generation_config: GenerationOptions = None,
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
        stop = prompt_format(self.config.template).stop
        if "streamer" in kwargs:
            raise ValueError("chat_stream yields the answer itself; leave out streamer, or call chat().")
        yield from stream_answer(
            self,
            tokenizer,
            stop,
            generation_config,
            lambda options, streamer: self.chat(
                tokenizer, pixel_values, question, options, streamer=streamer, **kwargs
            ),
        )

    def _converse(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        questions: Sequence[str],
        histories: Sequence[History | None],
        num_tiles: Sequence[Sequence[int]],
        generation_config: GenerationOptions,
        system: str | None,
        verbose: bool,
        streamer: BaseStreamer | None = None,
    ) -> list[list[tuple[str, str]]]:
        """Answer each conversation's question and return the conversations with that turn added."""
        conversations, prompts = self._open(tokenizer, pixel_values, questions, histories, num_tiles, system)
        if verbose:
            texts = [tokenizer.decode(prompt) for prompt in prompts]
            logger.info(f"{0 if pixel_values is None else len(pixel_values)} tiles, prompts: {texts}")
        answers = self._answers(tokenizer, pixel_values, prompts, generation_config, streamer)
        return [
            [*past, (question, answer)] for (*past, (question, _)), answer in zip(conversations, answers, strict=True)
        ]

    def _open(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        questions: Sequence[str],
        histories: Sequence[History | None],
        num_tiles: Sequence[Sequence[int]],
        system: str | None,
    ) -> tuple[list[list[tuple[str, str]]], list[list[int]]]:
        """Return each conversation as turns, the last of which awaits its answer, and as the ids of its prompt."""
        conversations, prompts = [], []
        tile_tokens = self._tile_tokens(pixel_values)
        for question, history, counts in zip(questions, histories, num_tiles, strict=True):
            turns = checked_turns(history, question)
            if counts and len(turns) == 1:
                turns = [(place_in_front(question), "")]
            conversations.append(turns)
            prompts.append(self._prompt(tokenizer, turns, counts, tile_tokens, system))
        return conversations, prompts

    def _tile_tokens(self, pixel_values: torch.Tensor | EncodedImages | None) -> int:
        """Return how many image tokens one of these tiles takes."""
        if isinstance(pixel_values, EncodedImages):
            return pixel_values.tile_tokens
        return 0 if pixel_values is None else self.num_image_tokens_of(*pixel_values.shape[-2:])

    def _prompt(
        self,
        tokenizer: PreTrainedTokenizerBase,
        turns: History,
        num_tiles: Sequence[int],
        tile_tokens: int,
        system: str | None,
    ) -> list[int]:
        """Return the ids of one conversation whose last turn awaits its answer, with its image tokens."""
        system = self.system_message if system is None else system
        if not isinstance(system, str):
            raise ValueError(f"system is {system!r}; expected text.")
        (*history, (question, _)) = turns
        return encode_conversation(
            tokenizer,
            prompt_format(self.config.template),
            turns_of_history(history, question, has_images=bool(num_tiles)),
            num_tiles,
            tile_tokens,
            system,
        )

    def _answers(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None,
        prompts: Sequence[Sequence[int]],
        generation_config: GenerationOptions,
        streamer: BaseStreamer | None,
    ) -> list[str]:
        """Generate from prompts and decode."""
        inputs = self._padded(prompts) | {"pixel_values": pixel_values}
        output = self._generate_answer(tokenizer, inputs, generation_config, streamer=streamer)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        per_prompt = len(sequences) // len(prompts)  # num_return_sequences: the first is the best
        return [self._answer_text(tokenizer, row) for row in sequences[::per_prompt].tolist()]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return the ids `(batch, seq)` of prompts, padded on the left, and their mask `(batch, seq)`."""
        input_ids, attention_mask = _left_padded(prompts)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _generate_answer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        inputs: Mapping[str, Any],
        generation_config: GenerationOptions,
        **arguments: Any,
    ) -> Any:
        """Generate from a prompt's `inputs`; return what `generate` does, with sequences of new tokens alone."""
        stop = prompt_format(self.config.template).stop
        options = answer_options(generation_config, self.generation_config, tokenizer, stop, **arguments)
        length = inputs["input_ids"].shape[1]
        output = self.generate(
            **{name: part.to(self.device) if name in PROMPT_NAMES else part for name, part in inputs.items()},
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT_TOKEN),
            **seeing_answer_alone(options, tokenizer, length),
        )
        if isinstance(output, torch.Tensor):
            return output[:, length:]
        output.sequences = output.sequences[:, length:]
        return output

    def _answer_text(self, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
        style = prompt_format(self.config.template)
        return decode_answer(tokenizer, token_ids, style.stop, style.answer_header).strip()


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask `(batch, longest)`. Padding is masked, so its id never matters."""
    longest = max(map(len, rows))
    input_ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return input_ids, attention_mask


def _check_fixed_tokens(*tokens: str) -> None:
    published = (IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_CONTEXT_TOKEN)
    if tokens != published:
        raise ValueError(
            f"IMG_START_TOKEN, IMG_END_TOKEN and IMG_CONTEXT_TOKEN are {tokens}; every published checkpoint "
            f"was trained with {published}. Leave them out."
        )


def place_in_front(question: str) -> str:
    """Return a question about a picture: where it does not say where the picture stands, that is in front."""
    return question if IMAGE_PLACEHOLDER in question else f"{IMAGE_PLACEHOLDER}\n{question}"


def checked_turns(history: History | None, question: str) -> list[tuple[str, str]]:
    """Return all turns, the last one awaiting its answer.

    Raises:
        ValueError: If they are not texts.
    """
    if not isinstance(question, str):
        raise ValueError(f"question is {question!r}; expected text.")
    if not isinstance(history, (list, tuple, type(None))):
        raise ValueError(f"history is {history!r}; expected a list of pairs of texts (question, answer).")
    for number, pair in enumerate(history or ()):
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise ValueError(
                f"history[{number}] is {pair!r}; expected a pair of texts (question, answer), "
                "as chat(..., return_history=True) returns them."
            )
    return [*((past, answer) for past, answer in history or ()), (question, "")]


def tiles_of_one_conversation(
    pixel_values: torch.Tensor | EncodedImages | None, num_patches_list: Sequence[int] | None
) -> list[int]:
    """Return the tiles of each picture of a conversation.

    Raises:
        ValueError: If they are not the tiles that there are.
    """
    if pixel_values is None:
        num_tiles = [] if num_patches_list is None else _as_numbers(num_patches_list)
        if sum(num_tiles):
            raise ValueError(f"num_patches_list is {num_tiles}, but pixel_values is None; give the tiles.")
        return []
    _check_tiles(pixel_values)
    num_tiles = _tiles_by_default(pixel_values) if num_patches_list is None else _as_numbers(num_patches_list)
    if sum(num_tiles) != len(pixel_values) or min(num_tiles) < 1:
        raise ValueError(
            f"num_patches_list {num_tiles} counts {sum(num_tiles)} tiles, but pixel_values has {len(pixel_values)}. "
            "Give the number of tiles of each picture, thumbnails included, as the image processor returns them."
        )
    return num_tiles


def _tiles_of_each(
    pixel_values: torch.Tensor | EncodedImages | None,
    questions: Sequence[str],
    num_patches_list: Sequence[int | Sequence[int]] | None,
) -> list[list[int]]:
    if isinstance(questions, str) or not hasattr(questions, "__len__") or len(questions) == 0:
        raise ValueError(f"questions is {questions!r}; expected a list with at least one question.")
    if num_patches_list is None:
        if pixel_values is not None and len(questions) > 1:
            raise ValueError(
                f"There are {len(questions)} questions and {len(pixel_values)} tiles, but no num_patches_list; "
                "give the number of tiles for each question (0 for none)."
            )
        num_patches_list = [0 if pixel_values is None else _tiles_by_default(pixel_values)] * len(questions)
    num_patches_list = _as_list(num_patches_list)
    if len(num_patches_list) != len(questions):
        raise ValueError(
            f"num_patches_list has {len(num_patches_list)} entries for {len(questions)} questions; give one each "
            "(a list of numbers for a question about several pictures)."
        )
    tiles = [_as_numbers(one if isinstance(one, (list, tuple)) else [one]) for one in num_patches_list]
    tiles = [[] if one == [0] else one for one in tiles]
    counts = [count for one in tiles for count in one]
    tiles_of_one_conversation(pixel_values, counts if counts or pixel_values is None else [0])
    return tiles


def _tiles_by_default(pixel_values: torch.Tensor | EncodedImages) -> list[int]:
    """Return the tiles of each picture where the caller did not say: as they were encoded, else all are one."""
    return list(pixel_values.num_tiles) if isinstance(pixel_values, EncodedImages) else [len(pixel_values)]


def _as_numbers(counts: Any) -> list[int]:
    """Take counts from lists, arrays or tensors; the image processor returns the latter."""
    try:
        return [index(count) for count in _as_list(counts)]
    except TypeError as error:
        raise ValueError(f"num_patches_list holds {counts!r}; expected whole numbers.") from error


def _as_list(counts: Any) -> list[Any]:
    if not hasattr(counts, "__iter__"):
        raise ValueError(f"num_patches_list is {counts!r}; expected a list with the number of tiles of each picture.")
    return list(counts)


def _check_tiles(pixel_values: torch.Tensor | EncodedImages) -> None:
    if isinstance(pixel_values, EncodedImages):
        return
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4 or len(pixel_values) == 0:
        found = tuple(pixel_values.shape) if hasattr(pixel_values, "shape") else type(pixel_values).__name__
        raise ValueError(
            f"pixel_values is {found}; expected a tensor (tiles, 3, height, width) with at least one tile, "
            "from the image processor. Pass None to ask without a picture."
        )
