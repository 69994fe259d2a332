"""A conversation that goes on: `ChatSession` reads nothing twice.

It gives `chat`'s answers. What it adds is the cache of keys and values: at every question the whole conversation is
written as `chat` writes it, and only what follows its longest common beginning with the cache is given to the model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .cache_internvl import GrowingCache, stretching_limit
from .chat_internvl import checked_turns, place_in_front, tiles_of_one_conversation
from .conversation_internvl import History
from .image_features_internvl import EncodedImages
from .options_internvl import GenerationOptions, read_options
from .prompt_format_internvl import IMAGE_CONTEXT_TOKEN, IMAGE_PLACEHOLDER, prompt_format
from .rope_internvl import POSITION_OPTIONS
from .streaming_internvl import stream_answer


# Options under which `generate` does not extend one row of an ordinary cache, and the value that is harmless.
CACHELESS_OPTIONS = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "cache_implementation": None,
    # Guesses are checked from the beginning of the prompt.
    "prompt_lookup_num_tokens": None,
    "assistant_model": None,
    # Some releases read a prompt in chunks only from its beginning.
    "prefill_chunk_size": None,
}


class ChatSession:
    """One conversation with a model, made by `InternVLChatModel.start_chat`; also a context manager that closes it.

    Answers are those of `model.chat` with the same history, up to rounding: the keys of an answer's tokens were
    computed one by one, where `chat` computes them together. Where a kept cache would hold other numbers, the
    conversation is read anew: beyond the length at which dynamic RoPE begins to stretch. So it is with several beams
    or another kind of cache.

    Attributes:
        history: (question, answer) pairs. It may be edited: what no longer fits is forgotten at the next question.
        pictures: One entry for each `<image>` of the history, in order. It may be edited alike.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationOptions = None,
        system: str | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.generation_config, self.system = generation_config, system
        self.history: list[tuple[str, str]] = []
        self.pictures: list[EncodedImages] = []
        self._waiting: list[EncodedImages] = []  # shown, and not yet asked about
        self._cache: GrowingCache | None = None
        self._cached: list[int | EncodedImages] = []  # what each token of the cache stands for
        self._positions: dict[str, Any] = {}  # how its positions were counted
        self._closed = False

    def show(self, pixel_values: torch.Tensor | EncodedImages, num_patches_list: Sequence[int] | None = None) -> None:
        """Add pictures; the next question is about them.

        Args:
            pixel_values: Tiles `(tiles, 3, height, width)`, or what `encode_images` made of them.
            num_patches_list: Tiles of each picture; None means that all tiles are one picture.

        Raises:
            ValueError: If there are no tiles, or not as many as counted; or if the session is closed.
        """
        self._check_open()
        if pixel_values is None:
            raise ValueError("pixel_values is None; give the tiles of the pictures to show.")
        self._waiting += self._encoded(pixel_values, num_patches_list)

    def chat(
        self,
        question: str,
        pixel_values: torch.Tensor | EncodedImages | None = None,
        generation_config: GenerationOptions = None,
        num_patches_list: Sequence[int] | None = None,
        streamer: BaseStreamer | None = None,
    ) -> str:
        """Answer the next question.

        Args:
            question: The question. `<image>` marks where a new picture stands; without any, it stands in front.
            pixel_values: New pictures, see `show`; None if there are none.
            generation_config: What `generate` takes; None means the session's.
            num_patches_list: See `show`.
            streamer: Receives tokens as they are made.

        Returns:
            The answer, which is now in `history`.

        Raises:
            ValueError: If pictures and `<image>` do not fit, or the session is closed. History stays as it was.
        """
        self._check_open()
        checked_turns(self.history, question)
        new = [*self._waiting, *self._encoded(pixel_values, num_patches_list)]
        question = place_in_front(question) if new else question
        answer = self._ask(self.history, [*self.pictures, *new], question, generation_config, streamer)
        self._waiting = []
        return answer

    def stream(self, question: str, generation_config: GenerationOptions = None, **kwargs: Any) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece while it is made.

        Closing the iterator stops the model; what it said until then is the answer in `history`.

        Args:
            question: See `chat`.
            generation_config: See `chat`.
            **kwargs: Other arguments of `chat`.

        Yields:
            Pieces of text, which together are the answer.

        Raises:
            ValueError: As `chat`.
        """
        if "streamer" in kwargs:
            raise ValueError("stream yields the answer itself; leave out streamer, or call chat().")
        yield from stream_answer(
            self.model,
            self.tokenizer,
            prompt_format(self.model.config.template).stop,
            self.generation_config if generation_config is None else generation_config,
            lambda options, streamer: self.chat(question, generation_config=options, streamer=streamer, **kwargs),
        )

    def retry(
        self,
        question: str | None = None,
        generation_config: GenerationOptions = None,
        streamer: BaseStreamer | None = None,
    ) -> str:
        """Answer the last question again, or another one in its place about the same pictures.

        Args:
            question: The new question; None means the old one.
            generation_config: See `chat`.
            streamer: See `chat`.

        Returns:
            The answer, which replaces the last one.

        Raises:
            ValueError: If nothing was asked yet; as `chat`.
        """
        self._check_open()
        if not self.history:
            raise ValueError("There is no question to ask again; the history is empty.")
        (*past, (old_question, _)) = self.history
        if question is None:
            question = old_question
        elif IMAGE_PLACEHOLDER in old_question and isinstance(question, str):
            question = place_in_front(question)
        return self._ask(past, self.pictures, question, generation_config, streamer)

    def rewind(self, turns: int = 1) -> None:
        """Forget the last turns, with the pictures that came with them.

        Args:
            turns: How many.

        Raises:
            ValueError: If there are not so many.
        """
        if not 0 <= turns <= len(self.history):
            raise ValueError(f"There are {len(self.history)} turns; {turns} of them cannot be forgotten.")
        left = len(self.history) - turns
        del self.pictures[sum(question.count(IMAGE_PLACEHOLDER) for question, _ in self.history[:left]) :]
        del self.history[left:]

    def close(self) -> None:
        """Free the cache and the pictures; the history can still be read. More than once does no harm."""
        self._forget()
        self.pictures.clear()
        self._waiting.clear()
        self._closed = True

    def __enter__(self) -> "ChatSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _encoded(
        self, pixel_values: torch.Tensor | EncodedImages | None, num_patches_list: Sequence[int] | None
    ) -> list[EncodedImages]:
        """Return pictures one by one."""
        num_tiles = tiles_of_one_conversation(pixel_values, num_patches_list)
        if pixel_values is None:
            return []
        if isinstance(pixel_values, EncodedImages):
            return EncodedImages(pixel_values.features, tuple(num_tiles)).split()
        return self.model.encode_images(pixel_values, num_tiles).split()

    @torch.no_grad()
    def _ask(
        self,
        past: History,
        pictures: Sequence[EncodedImages],
        question: str,
        generation_config: GenerationOptions,
        streamer: BaseStreamer | None,
    ) -> str:
        """Answer a question after some turns; only then do they become the history."""
        model, tokenizer = self.model, self.tokenizer
        turns = checked_turns(past, question)
        num_tiles, tile_tokens = [len(picture) for picture in pictures], _common_tile_tokens(pictures)
        input_ids = model._prompt(tokenizer, turns, num_tiles, tile_tokens, self.system)
        generation_config = self.generation_config if generation_config is None else generation_config
        token_ids = self._answer_ids(input_ids, pictures, generation_config, streamer)
        answer = model._answer_text(tokenizer, token_ids)
        self.history[:] = [*turns[:-1], (question, answer)]
        self.pictures[:] = pictures
        return answer

    def _answer_ids(
        self,
        input_ids: list[int],
        pictures: Sequence[EncodedImages],
        generation_config: GenerationOptions,
        streamer: BaseStreamer | None,
    ) -> list[int]:
        """Generate after the prompt `input_ids`, reading as little of it as possible."""
        image_token_id = self.tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT_TOKEN)
        limit = stretching_limit(self.model.config.llm_config)
        stretched = limit is not None and len(input_ids) > limit
        if stretched:
            self._forget()  # every length has its own angles
        options = read_options(generation_config)
        positions = {name: options[name] for name in POSITION_OPTIONS if options.get(name) is not None}
        if positions != self._positions:
            self._forget()
        self._positions = positions
        tokens = _what_tokens_stand_for(input_ids, pictures, image_token_id)
        keeps_cache = not stretched and _extends_a_cache(generation_config, self.model.generation_config)
        kept = self._keep_beginning(tokens) if keeps_cache else 0
        prompt = torch.tensor([input_ids])
        inputs = {
            "input_ids": prompt,
            "attention_mask": torch.ones_like(prompt),
            "visual_features": _features_after(pictures, tokens[:kept]),
            "past_key_values": self._cache if keeps_cache else None,
        }
        try:
            output = self.model._generate_answer(self.tokenizer, inputs, generation_config, streamer=streamer)
        except BaseException:
            self._forget()  # some layers may have read more than others
            raise
        token_ids = (output if isinstance(output, torch.Tensor) else output.sequences)[0].tolist()
        if keeps_cache:
            self._cached = [*tokens, *token_ids][: self._cache.get_seq_length()]
        return token_ids

    def _keep_beginning(self, tokens: Sequence[int | EncodedImages]) -> int:
        """Cut the cache to what it has in common with the beginning of `tokens`; return how many tokens that are.

        The last token is always read again: the model must say something after it.
        """
        pairs = zip(self._cached, tokens[:-1], strict=False)
        kept = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self._cached), len(tokens) - 1))
        if kept == 0:
            self._cache = GrowingCache(self.model.config, croppable=True)
        elif kept < len(self._cached):
            self._cache.crop(kept - len(self._cached))
        self._cached = self._cached[:kept]
        return kept

    def _forget(self) -> None:
        self._cache, self._cached = None, []

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("The session is closed; start another one with start_chat().")


def _common_tile_tokens(pictures: Sequence[EncodedImages]) -> int:
    counts = {picture.tile_tokens for picture in pictures} or {0}
    if len(counts) > 1:
        raise ValueError(f"The pictures' tiles have {sorted(counts)} image tokens; use one tile size for all.")
    return counts.pop()


def _what_tokens_stand_for(
    input_ids: Sequence[int], pictures: Sequence[EncodedImages], image_token_id: int
) -> list[int | EncodedImages]:
    """Return each token's id, and the picture instead in each of its places: another picture is another token."""
    places = (picture for picture in pictures for _ in range(len(picture) * picture.tile_tokens))
    return [next(places) if token_id == image_token_id else token_id for token_id in input_ids]


def _features_after(pictures: Sequence[EncodedImages], read: Sequence[int | EncodedImages]) -> torch.Tensor | None:
    """Return the image features `(places, hidden)` of the places that follow those already read."""
    num_read = sum(isinstance(token, EncodedImages) for token in read)
    features = []
    for picture in pictures:
        places = picture.features.flatten(0, 1)  # (places, hidden)
        features.append(places[num_read:])
        num_read = max(num_read - len(places), 0)
    features = [places for places in features if len(places)]
    return torch.cat(features) if features else None


def _extends_a_cache(generation_config: GenerationOptions, defaults: Any) -> bool:
    """Say whether `generate` with these options extends an ordinary cache by one row."""
    options = read_options(generation_config)
    given = options.get("generation_config", defaults)
    values = {name: options.get(name, getattr(given, name, None)) for name in CACHELESS_OPTIONS}
    return all(values[name] in (None, harmless) for name, harmless in CACHELESS_OPTIONS.items())
