"""The official calls `chat`, `batch_chat` and `chat_stream`; beside them `chat_with_logprobs` and `score_choices`.

Each is a whole conversation; one that goes on is a `ChatSession`, which `start_chat` makes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .answer_internvl import (
    SCORED_OUTPUT,
    Answerer,
    GenerationOptions,
    ScoredAnswer,
    id_rows,
    read_options,
    scored_answer,
)
from .conversation_internvl import History, ids_of
from .image_features_internvl import EncodedImages, ImageInput, count_tiles, count_tiles_of_each
from .prompt_format_internvl import IMAGE_CONTEXT_TOKEN, IMAGE_END_TOKEN, IMAGE_START_TOKEN
from .session_internvl import ChatSession, checked_turns, place_in_front
from .streaming_internvl import stream_answer


logger = logging.get_logger(__name__)


class ChatMixin:
    """Conversations for a model with `config`, `system_message`, `generate`, `encode_images`, `num_image_tokens_of`.

    Nothing that the caller passes is changed, nothing is printed, and no call leaves anything behind on the model.
    """

    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
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
        """Answer a question, with or without images. Names and order of the first arguments are official.

        Args:
            tokenizer: The checkpoint's tokenizer.
            pixel_values: Tiles of all images `(tiles, 3, height, width)`, from the image processor; what
                `encode_images` made of them; or None.
            question: The question. `<image>` marks where an image stands; without any, and without history, the image
                stands in front.
            generation_config: What `generate` takes, as a dict or a GenerationConfig.
            history: Earlier (question, answer) pairs; their `<image>` take the first images.
            return_history: Whether to return the history with this turn added.
            num_patches_list: Tiles of each image; None means that all tiles are one image, unless `encode_images` was
                told otherwise.
            IMG_START_TOKEN: Official argument; only the published token is possible.
            IMG_END_TOKEN: Official argument; only the published token is possible.
            IMG_CONTEXT_TOKEN: Official argument; only the published token is possible.
            verbose: Whether to log the prompt.
            streamer: Receives tokens as they are generated.
            system: System message of this call; None means the model's.
            rope_pos_id_version: See `generate`; elsewhere it is one of the options in `generation_config`.
            rope_pos_id_stride: See `generate`.

        Returns:
            The answer; with `return_history` also the new history.

        Raises:
            ValueError: If images, `<image>` and `num_patches_list` do not fit, history is not pairs of text, the
                template is unknown, or tiles hold NaN.
        """
        # Before anything is encoded or generated, so that a wrong call costs nothing.
        _check_fixed_tokens(IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        positions = {"rope_pos_id_version": rope_pos_id_version, "rope_pos_id_stride": rope_pos_id_stride}
        positions = {name: value for name, value in positions.items() if value is not None}
        generation_config = read_options(generation_config) | positions if positions else generation_config
        num_tiles, answerer = count_tiles(pixel_values, num_patches_list), Answerer(self, tokenizer, system)
        (turns,) = self._converse(
            answerer, pixel_values, [question], [history], [num_tiles], generation_config, verbose, streamer
        )
        answer = turns[-1][1]
        # A new list: the official code appends to the caller's, and a second call then sees the first one's turn.
        return (answer, turns) if return_history else answer

    def batch_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
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
            pixel_values: Tiles of all images of all conversations in order, encoded or not, or None.
            questions: One question for each conversation, as in `chat`.
            generation_config: See `chat`.
            num_patches_list: For each conversation the tiles of its image (0: no image), or a list with the tiles of
                each of its images; None means no image, or all tiles for a single question.
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
        num_tiles = count_tiles_of_each(
            pixel_values, questions, image_counts if num_patches_list is None else num_patches_list
        )
        # Official callers pass None for all; lists of other lengths would pair questions with foreign histories.
        histories = [None] * len(questions) if history is None else list(history)
        if len(histories) != len(questions):
            raise ValueError(f"There are {len(histories)} histories for {len(questions)} questions; give one each.")
        answerer = Answerer(self, tokenizer, system)
        turns = self._converse(answerer, pixel_values, questions, histories, num_tiles, generation_config, verbose)
        answers = [conversation[-1][1] for conversation in turns]
        return (answers, turns) if return_history else answers

    def chat_stream(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
        question: str,
        generation_config: GenerationOptions = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece while it is generated; closing the iterator stops the model.

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
        if "streamer" in kwargs:
            raise ValueError("chat_stream yields the answer itself; leave out streamer, or call chat().")
        yield from stream_answer(
            self,
            tokenizer,
            generation_config,
            lambda options, stream: self.chat(tokenizer, pixel_values, question, options, streamer=stream, **kwargs),
        )

    def chat_with_logprobs(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
        question: str,
        generation_config: GenerationOptions = None,
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        system: str | None = None,
    ) -> ScoredAnswer | tuple[ScoredAnswer, list[tuple[str, str]]]:
        """Answer as `chat` does, and return how likely each token was.

        It costs no further pass; the logits are kept until the end, 4 bytes times the vocabulary for each token.

        Args:
            tokenizer: See `chat`.
            pixel_values: See `chat`.
            question: See `chat`.
            generation_config: See `chat`; one answer is generated; `num_return_sequences` has no effect.
            history: See `chat`.
            return_history: See `chat`.
            num_patches_list: See `chat`.
            system: See `chat`.

        Returns:
            The answer; with `return_history` also the new history.

        Raises:
            ValueError: As `chat`.
        """
        num_tiles, answerer = count_tiles(pixel_values, num_patches_list), Answerer(self, tokenizer, system)
        (turns,), prompts = self._prompts(answerer, pixel_values, [question], [history], [num_tiles])
        # Through `generate` like `chat`, so that settings choose the same tokens; only raw logits are read beside it.
        inputs = _padded(prompts) | {"pixel_values": pixel_values}
        answer = scored_answer(answerer, answerer.generate(inputs, generation_config, **SCORED_OUTPUT))
        return (answer, [*turns[:-1], (turns[-1][0], answer.text)]) if return_history else answer

    def score_choices(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None,
        question: str,
        choices: Sequence[str],
        history: History | None = None,
        num_patches_list: Sequence[int] | None = None,
        system: str | None = None,
        with_end: bool = True,
    ) -> list[ScoredAnswer]:
        """Score several answers by their log-probabilities. Images and prompt are read once for all of them.

        Args:
            tokenizer: See `chat`.
            pixel_values: See `chat`.
            question: See `chat`.
            choices: The answers to score, of any lengths.
            history: See `chat`.
            num_patches_list: See `chat`.
            system: See `chat`.
            with_end: Whether a choice must be the whole answer: the token that ends it counts. Without, answers that
                merely begin with it count too: the probability of "4" includes that of "40".

        Returns:
            The choices in their order. The best has the largest `logprob`; softmax over all of them gives each
            choice's probability.

        Raises:
            ValueError: If there is no choice, one is not text or has no tokens; as `chat`.
        """
        num_tiles = count_tiles(pixel_values, num_patches_list)
        turns = _turns(history, question, num_tiles)
        images = pixel_values
        if isinstance(pixel_values, torch.Tensor):
            # Encoded here and not by the session's `show`, which would place them before a later question.
            images = self.encode_images(pixel_values, num_tiles)
        images = [] if images is None else replace(images, num_tiles=tuple(num_tiles)).split()
        # A session of one question: its cache holds the prompt, behind which each choice is written and removed again.
        with ChatSession(self, tokenizer, system=system) as session:
            return session.score(turns, images, choices, with_end)

    def start_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: ImageInput | None = None,
        generation_config: GenerationOptions = None,
        num_patches_list: Sequence[int] | None = None,
        system: str | None = None,
    ) -> ChatSession:
        """Start a conversation that keeps its cache, so that no question reads again what an earlier one has read.

        Args:
            tokenizer: The checkpoint's tokenizer.
            pixel_values: The images of the first question, see `ChatSession.show`; None if there are none.
            generation_config: What `generate` takes, for all questions without options of their own.
            num_patches_list: See `ChatSession.show`.
            system: System message; None means the model's.

        Returns:
            The session. It holds memory on the device until it is closed.

        Raises:
            ValueError: As `encode_images`.
        """
        read_options(generation_config)  # an error is raised here, and not at the first question
        session = ChatSession(self, tokenizer, generation_config, system)
        if pixel_values is not None:
            session.show(pixel_values, num_patches_list)
        return session

    def _converse(
        self,
        answerer: Answerer,
        pixel_values: ImageInput | None,
        questions: Sequence[str],
        histories: Sequence[History | None],
        num_tiles: Sequence[Sequence[int]],
        generation_config: GenerationOptions,
        verbose: bool,
        streamer: BaseStreamer | None = None,
    ) -> list[list[tuple[str, str]]]:
        """Answer each conversation's question and return the conversations with that turn added."""
        conversations, prompts = self._prompts(answerer, pixel_values, questions, histories, num_tiles)
        if verbose:
            texts = [answerer.tokenizer.decode(prompt) for prompt in prompts]
            logger.info(f"{0 if pixel_values is None else len(pixel_values)} tiles, prompts: {texts}")
        inputs = _padded(prompts) | {"pixel_values": pixel_values}
        output = answerer.generate(inputs, generation_config, streamer=streamer)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        per_prompt = len(sequences) // len(prompts)  # num_return_sequences: the first is the best
        answers = [answerer.text(row) for row in sequences[::per_prompt].tolist()]
        return [
            [*past, (question, answer)] for (*past, (question, _)), answer in zip(conversations, answers, strict=True)
        ]

    def _prompts(
        self,
        answerer: Answerer,
        pixel_values: ImageInput | None,
        questions: Sequence[str],
        histories: Sequence[History | None],
        num_tiles: Sequence[Sequence[int]],
    ) -> tuple[list[list[tuple[str, str]]], list[list[int]]]:
        """Return each conversation as turns, the last of which awaits its answer, and as the ids of its prompt."""
        tile_tokens = self._tile_tokens(pixel_values)
        # The images of all conversations are one tensor, in order: each prompt takes the next ones.
        conversations = [_turns(*one) for one in zip(histories, questions, num_tiles, strict=True)]
        return conversations, [
            ids_of(answerer.prompt(turns, counts, tile_tokens))
            for turns, counts in zip(conversations, num_tiles, strict=True)
        ]

    def _tile_tokens(self, pixel_values: ImageInput | None) -> int:
        """Return the image tokens of a tile, 0 without images."""
        if isinstance(pixel_values, EncodedImages):
            return pixel_values.tile_tokens
        return 0 if pixel_values is None else self.num_image_tokens_of(*pixel_values.shape[-2:])


def _turns(history: History | None, question: str, num_tiles: Sequence[int]) -> list[tuple[str, str]]:
    """Return a conversation as turns; the images of a first question stand in front, unless it says where."""
    turns = checked_turns(history, question)
    # As in the official code; after a history it is the caller who says where further images stand.
    return [(place_in_front(question), "")] if num_tiles and len(turns) == 1 else turns


def _padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return the ids `(batch, seq)` of prompts, padded on the left, and their mask `(batch, seq)`.

    Padding is masked, so its id never matters.
    """
    longest = max(map(len, prompts))
    return {
        "input_ids": id_rows([[0] * (longest - len(ids)) + list(ids) for ids in prompts]),
        "attention_mask": id_rows([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]),
    }


def _check_fixed_tokens(*tokens: str) -> None:
    published = (IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_CONTEXT_TOKEN)
    if tokens != published:
        raise ValueError(
            f"IMG_START_TOKEN, IMG_END_TOKEN and IMG_CONTEXT_TOKEN are {tokens}; every published checkpoint "
            f"was trained with {published}. Leave them out."
        )
