"""A conversation that goes on: `ChatSession` answers, streams and scores, and reads nothing twice.

It is the package's one stateful object: tokenizer, images, system message, options, the cache of keys and values, and
the lock that lets one question through at a time. Its answers are `chat`'s.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .answer_internvl import (
    SCORED_OUTPUT,
    Answerer,
    GenerationOptions,
    ScoredAnswer,
    checked_choices,
    choice_ids,
    continuation_logprobs,
    id_rows,
    read_options,
    scored,
    scored_answer,
    unshared_logprobs,
)
from .cache_internvl import GrowingCache, stretching_limit
from .conversation_internvl import History, Piece, PromptEncoder, ids_of
from .generation_internvl import answering
from .image_features_internvl import EncodedImages, ImageInput, count_tiles
from .prompt_format_internvl import IMAGE_PLACEHOLDER
from .rope_internvl import POSITION_OPTIONS
from .streaming_internvl import AnswerStream, stream_answer


# Options under which `generate` does not extend one row of an ordinary cache, and the value that is harmless.
CACHELESS_OPTIONS = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "cache_implementation": None,
    # Draft tokens are verified from the start of the prompt.
    "prompt_lookup_num_tokens": None,
    "assistant_model": None,
    # Some releases read a prompt in chunks only from its start.
    "prefill_chunk_size": None,
}


class ChatSession:
    """One conversation with a model, made by `InternVLChatModel.start_chat`; also a context manager that closes it.

    Answers are those of `model.chat` with the same history, up to rounding: the keys of an answer's tokens were
    computed one by one, where `chat` computes them together. The whole prompt is read again where a kept cache would
    hold other numbers: beyond the length at which dynamic RoPE begins to stretch, with several beams, and with another
    kind of cache.

    One question at a time: a second one, of another thread or while a stream runs, waits for the first. `close` and
    `rewind` do not: they stop a stream that is running, at its next token, and go before all questions that wait.
    Every other question is answered to its end. A question that could only wait for itself is refused: one that a
    streamer or a criterion of `generate` asks, and one beside the stream of a model in training, which goes on only
    while it is read.

    Attributes:
        history: (question, answer) pairs: what was answered and nothing else. A question that failed is not there; one
            whose stream was stopped is there with the answer up to then. It may be edited between questions.
        images: One entry for each `<image>` of the history, in order. It may be edited alike.
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
        self.images: list[EncodedImages] = []
        self._shown: list[EncodedImages] = []  # for the next question
        # Remembers guarded and tokenized texts, so that only a new turn costs time; rebuilt when tokens are added.
        self._encoder: PromptEncoder | None = None
        self._cache: GrowingCache | None = None
        self._cached: list[int | EncodedImages] = []  # what each token of the cache stands for
        self._positions: dict[str, Any] = {}  # how the positions of its tokens were counted
        # The lock of all of the above. `history` and `images` are written under it alone, and only with whole answers.
        self._is_closed = False
        self._turns = _Turns()

    @property
    def pictures(self) -> list[EncodedImages]:
        """`images`, under their name in version 0.1.0."""
        return self.images

    def show(self, pixel_values: ImageInput, num_patches_list: Sequence[int] | None = None) -> None:
        """Add images; the next question is about them.

        Args:
            pixel_values: Tiles `(tiles, 3, height, width)`, or what `encode_images` made of them.
            num_patches_list: Tiles of each image; None means that all tiles are one image.

        Raises:
            ValueError: If there are no tiles, or not as many as counted; or if the session is closed.
        """
        self._check_is_open()
        if pixel_values is None:
            raise ValueError("pixel_values is None; give the tiles of the images to show.")
        self._shown += self._encoded(pixel_values, num_patches_list)

    def chat(
        self,
        question: str,
        pixel_values: ImageInput | None = None,
        generation_config: GenerationOptions = None,
        num_patches_list: Sequence[int] | None = None,
        streamer: BaseStreamer | None = None,
    ) -> str:
        """Answer the next question.

        Args:
            question: The question. `<image>` marks where a new image stands; without any, it stands in front.
            pixel_values: New images, see `show`; None if there are none.
            generation_config: What `generate` takes; None means the session's.
            num_patches_list: See `show`.
            streamer: Receives tokens as they are generated.

        Returns:
            The answer, which is now in `history`.

        Raises:
            ValueError: If images and `<image>` do not fit, or the session is closed. History stays as it was.
            RuntimeError: If the question would wait for itself.
        """
        return self._ask_next(question, pixel_values, num_patches_list, generation_config, streamer=streamer)

    def chat_with_logprobs(
        self,
        question: str,
        pixel_values: ImageInput | None = None,
        generation_config: GenerationOptions = None,
        num_patches_list: Sequence[int] | None = None,
    ) -> ScoredAnswer:
        """Answer the next question, and return how likely each token was; see `InternVLChatModel.chat_with_logprobs`.

        Args:
            question: See `chat`.
            pixel_values: See `chat`.
            generation_config: See `chat`.
            num_patches_list: See `chat`.

        Returns:
            The answer, whose text is now in `history`.

        Raises:
            ValueError: As `chat`.
            RuntimeError: As `chat`.
        """
        return self._ask_next(question, pixel_values, num_patches_list, generation_config, with_logprobs=True)

    def stream(self, question: str, generation_config: GenerationOptions = None, **kwargs: Any) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece while it is generated.

        Closing the iterator stops the model, as `close` and `rewind` do; the answer up to then is in `history`. The
        question is asked when the first piece is.

        Args:
            question: See `chat`.
            generation_config: See `chat`.
            **kwargs: Other arguments of `chat`.

        Yields:
            Pieces of text, which together are the answer.

        Raises:
            ValueError: As `chat`.
            RuntimeError: As `chat`.
        """
        # Not left to Python: two streamers would be a TypeError about this method's own call.
        if "streamer" in kwargs:
            raise ValueError("stream yields the answer itself; leave out streamer, or call chat().")
        yield from stream_answer(
            self.model,
            self.tokenizer,
            self.generation_config if generation_config is None else generation_config,
            lambda options, stream: self.chat(question, generation_config=options, streamer=stream, **kwargs),
        )

    def retry(
        self,
        question: str | None = None,
        generation_config: GenerationOptions = None,
        streamer: BaseStreamer | None = None,
    ) -> str:
        """Answer the last question again, or another one instead about the same images.

        Args:
            question: The new question; None means the old one.
            generation_config: See `chat`.
            streamer: See `chat`.

        Returns:
            The answer, which replaces the last one.

        Raises:
            ValueError: If nothing was asked yet; as `chat`.
            RuntimeError: As `chat`.
        """
        with self._turns.take():
            self._check_is_open()
            if not self.history:
                raise ValueError("There is no question to ask again; the history is empty.")
            (*past, (old_question, _)) = self.history
            if question is None:
                question = old_question
            elif IMAGE_PLACEHOLDER in old_question and isinstance(question, str):
                question = place_in_front(question)
            return self._ask(past, self.images, question, generation_config, streamer=streamer)

    def score_choices(
        self,
        question: str,
        choices: Sequence[str],
        pixel_values: ImageInput | None = None,
        num_patches_list: Sequence[int] | None = None,
        with_end: bool = True,
    ) -> list[ScoredAnswer]:
        """Score several answers to the next question; history and shown images stay unchanged.

        Args:
            question: See `chat`.
            choices: See `InternVLChatModel.score_choices`.
            pixel_values: See `chat`.
            num_patches_list: See `chat`.
            with_end: See `InternVLChatModel.score_choices`.

        Returns:
            The choices in their order.

        Raises:
            ValueError: If there is no choice, one is not text or has no tokens; as `chat`.
            RuntimeError: As `chat`.
        """
        with self._turns.take():
            self._check_is_open()
            new = [*self._shown, *self._encoded(pixel_values, num_patches_list)]
            turns = checked_turns(self.history, question)
            question = place_in_front(question) if new else question
            return self.score([*turns[:-1], (question, "")], [*self.images, *new], choices, with_end)

    def rewind(self, turns: int = 1) -> None:
        """Discard the last turns, with their images; a stream that is running is stopped first, and is the last turn.

        Args:
            turns: How many.

        Raises:
            ValueError: If there are not so many.
            RuntimeError: If an answer's own streamer or criterion calls this.
        """
        with self._turns.take(stops_stream=True):
            if not 0 <= turns <= len(self.history):
                raise ValueError(f"There are {len(self.history)} turns; {turns} of them cannot be discarded.")
            left = len(self.history) - turns
            # Each placeholder of the turns that stay has one image; the images that follow came later.
            del self.images[sum(question.count(IMAGE_PLACEHOLDER) for question, _ in self.history[:left]) :]
            del self.history[left:]

    def close(self) -> None:
        """Stop a stream that is running, and free cache and images; the history can still be read.

        More than once does no harm.

        Raises:
            RuntimeError: If an answer's own streamer or criterion calls this.
        """
        with self._turns.take(stops_stream=True):
            self._discard_cache()
            self._encoder = None
            self.images.clear()
            self._shown.clear()
            self._is_closed = True

    def __enter__(self) -> "ChatSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _encoded(self, pixel_values: ImageInput | None, num_patches_list: Sequence[int] | None) -> list[EncodedImages]:
        """Return images one by one."""
        num_tiles = count_tiles(pixel_values, num_patches_list)
        if pixel_values is None:
            return []
        if isinstance(pixel_values, EncodedImages):
            self.model.check_encoded(pixel_values)
            return replace(pixel_values, num_tiles=tuple(num_tiles)).split()
        return self.model.encode_images(pixel_values, num_tiles).split()

    def _ask_next(
        self,
        question: str,
        pixel_values: ImageInput | None,
        num_patches_list: Sequence[int] | None,
        generation_config: GenerationOptions,
        **kwargs: Any,
    ) -> Any:
        """Answer a new question; return what `_ask` returns, None if its stream was stopped before its turn."""
        stream = kwargs.get("streamer")
        stream = stream if isinstance(stream, AnswerStream) else None
        with self._turns.take(stream):
            self._check_is_open()
            if stream is not None and stream.is_cancelled:
                return None
            checked_turns(self.history, question)  # before images are encoded, which takes longest
            shown = len(self._shown)
            new = [*self._shown, *self._encoded(pixel_values, num_patches_list)]
            question = place_in_front(question) if new else question
            answer = self._ask(list(self.history), [*self.images, *new], question, generation_config, **kwargs)
            del self._shown[:shown]  # others may have been shown meanwhile
            return answer

    @torch.no_grad()
    def _ask(
        self,
        past: History,
        images: Sequence[EncodedImages],
        question: str,
        generation_config: GenerationOptions,
        streamer: BaseStreamer | None = None,
        with_logprobs: bool = False,
    ) -> str | ScoredAnswer:
        """Answer a question after some turns; only then do they become the history."""
        # Copies: `images` may be the session's own list, and what is asked must not change while it is answered.
        turns, images, answerer = checked_turns(past, question), list(images), self._answerer()
        for image in images:  # the list may have been edited
            self.model.check_encoded(image)
        pieces = answerer.prompt(turns, [len(image) for image in images], _common_tile_tokens(images))
        options = self.generation_config if generation_config is None else generation_config
        arguments = SCORED_OUTPUT if with_logprobs else {}
        output = self._generate(answerer, pieces, images, options, streamer=streamer, **arguments)
        if with_logprobs:
            answer = scored_answer(answerer, output)
            text = answer.text
        else:
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            answer = text = answerer.text(sequences[0].tolist())
        # In place: callers keep the lists. Nothing between here and the answer can fail, so both change or neither.
        self.history[:] = [*turns[:-1], (question, text)]
        self.images[:] = images
        return answer

    @torch.no_grad()
    def score(
        self, turns: History, images: Sequence[EncodedImages], choices: Sequence[str], with_end: bool
    ) -> list[ScoredAnswer]:
        """Score answers to the last of some turns.

        Args:
            turns: (question, answer) pairs; the last answer is not looked at.
            images: One entry for each `<image>` of the questions.
            choices: See `score_choices`.
            with_end: See `score_choices`.

        Returns:
            See `score_choices`.
        """
        answerer, model, texts = self._answerer(), self.model, checked_choices(choices)
        for image in images:
            model.check_encoded(image)
        pieces = answerer.prompt(turns, [len(image) for image in images], _common_tile_tokens(images))
        rows = [choice_ids(answerer, turns[-1][0], text, with_end) for text in texts]
        tokens, limit = _tokens(pieces, images), stretching_limit(model.config.llm_config)
        is_stretched = limit is not None and len(tokens) + max(map(len, rows)) > limit
        kept = 0 if is_stretched else self._keep_prefix(tokens)
        with answering(model), self._discarding_cache():
            # Embedded here, since `forward` looks for the config's image token and a tokenizer may have another id.
            unread = model.embed_inputs(
                id_rows([ids_of(pieces)[kept:]]),  # (1, unread)
                visual_features=_unread_features(pieces, images, kept),
                image_token_id=answerer.image_token_id,
            )  # (1, unread, hidden)
            if is_stretched:
                scores = [unshared_logprobs(model, unread, row) for row in rows]
            else:
                cache = self._cache
                first = model(inputs_embeds=unread, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]
                scores = continuation_logprobs(model, cache, first, rows)
                self._cached = tokens
        return [scored(answerer, *one) for one in zip(texts, rows, scores, strict=True)]

    def _answerer(self) -> Answerer:
        """Return what asks the model, with an encoder that remembers the earlier turns."""
        if self._encoder is None or not self._encoder.is_current(self.tokenizer):
            self._encoder = PromptEncoder(self.tokenizer, remembers=True)
        return Answerer(self.model, self.tokenizer, self.system, self._encoder)

    def _generate(
        self,
        answerer: Answerer,
        pieces: Sequence[Piece],
        images: Sequence[EncodedImages],
        generation_config: GenerationOptions,
        **arguments: Any,
    ) -> Any:
        """Generate after a prompt, reading as little of it as possible; return what `Answerer.generate` returns."""
        tokens, limit = _tokens(pieces, images), stretching_limit(self.model.config.llm_config)
        is_stretched = limit is not None and len(tokens) > limit
        options = read_options(generation_config)
        positions = {name: options[name] for name in POSITION_OPTIONS if options.get(name) is not None}
        if is_stretched or positions != self._positions:
            self._discard_cache()  # every length has its own angles, and every way of counting its own positions
        self._positions = positions
        keeps_cache = not is_stretched and _extends_a_cache(generation_config, self.model.generation_config)
        kept = self._keep_prefix(tokens) if keeps_cache else 0
        prompt = id_rows([ids_of(pieces)])  # (1, seq)
        inputs = {
            "input_ids": prompt,
            "attention_mask": torch.ones_like(prompt),
            "visual_features": _unread_features(pieces, images, kept),
            "past_key_values": self._cache if keeps_cache else None,
        }
        with self._discarding_cache():
            output = answerer.generate(inputs, generation_config, **arguments)
        if keeps_cache:
            # The answer's last token is not in the cache: `generate` stops without reading it.
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            self._cached = [*tokens, *sequences[0].tolist()][: self._cache.get_seq_length()]
        return output

    def _keep_prefix(self, tokens: Sequence[int | EncodedImages]) -> int:
        """Crop the cache to the prefix that it shares with `tokens`; return how many tokens that are.

        The last token is always read again: the next one is predicted from its state.
        """
        kept = _shared_prefix(self._cached, tokens[:-1])
        if kept == 0:
            # Not cropped to nothing: the buffers of a long conversation would stay allocated.
            self._cache = GrowingCache(self.model.config, croppable=True)
        elif kept < len(self._cached):
            self._cache.crop(kept - len(self._cached))
        self._cached = self._cached[:kept]
        return kept

    @contextmanager
    def _discarding_cache(self) -> Iterator[None]:
        """Discard the cache if the model fails: some layers may have read more tokens than others."""
        try:
            yield
        except BaseException:
            self._discard_cache()
            raise

    def _discard_cache(self) -> None:
        self._cache, self._cached = None, []

    def _check_is_open(self) -> None:
        if self._is_closed:
            raise ValueError("The session is closed; start another one with start_chat().")


def place_in_front(question: str) -> str:
    """Return a question about an image, which stands in front unless the question says where."""
    return question if IMAGE_PLACEHOLDER in question else f"{IMAGE_PLACEHOLDER}\n{question}"


def checked_turns(history: History | None, question: str) -> list[tuple[str, str]]:
    """Return (question, answer) pairs with a new one, whose answer is empty.

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


class _Turns:
    """Lets one thread at a time work on a session; those that stop a stream go first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: int | None = None  # whose turn it is
        self._stream: AnswerStream | None = None  # what it streams
        self._stopping = 0  # threads that wait and go first

    @contextmanager
    def take(self, stream: AnswerStream | None = None, stops_stream: bool = False) -> Iterator[None]:
        """Wait for a turn and hold it.

        Args:
            stream: What will be streamed in it.
            stops_stream: Whether to stop the stream that is running, and to go first.

        Yields:
            Nothing.

        Raises:
            RuntimeError: If it would wait for itself.
        """
        with self._changed:
            self._stopping += stops_stream
            try:
                # Those that stop a stream go first, or a waiting question would start between a stream and its rewind.
                while self._thread is not None or (self._stopping and not stops_stream):
                    self._wait(stops_stream)
            finally:
                self._stopping -= stops_stream
                self._changed.notify_all()
            self._thread, self._stream = threading.get_ident(), stream
        try:
            yield
        finally:
            with self._changed:
                self._thread = self._stream = None
                self._changed.notify_all()

    def _wait(self, stops_stream: bool) -> None:
        if self._thread == threading.get_ident():
            raise RuntimeError(
                "The session is asked while it answers, by a streamer or criterion of that answer; ask when it has "
                "ended."
            )
        if stops_stream and self._stream is not None:
            # Only asks: the stream's own thread records what was answered, and then ends its turn.
            self._stream.cancel()
        elif self._stream is not None and self._stream.waits_for_reader:
            raise RuntimeError(
                "The session is streaming an answer of a model in training, which goes on only while it is read; read "
                "it to its end or close it before the next question."
            )
        self._changed.wait()


def _common_tile_tokens(images: Sequence[EncodedImages]) -> int:
    counts = {image.tile_tokens for image in images} or {0}
    if len(counts) > 1:
        raise ValueError(f"The images' tiles have {sorted(counts)} image tokens; use one tile size for all.")
    return counts.pop()


def _tokens(pieces: Sequence[Piece], images: Sequence[EncodedImages]) -> list[int | EncodedImages]:
    """Return each token's id, and for an image token its image: that of another image is another token."""
    # By objects and not by values: `EncodedImages` are equal only to themselves, so comparing them reads no features.
    tokens: list[int | EncodedImages] = []
    for piece in pieces:
        if piece.image is None:
            tokens += piece.ids
        else:
            tokens += [piece.ids[0], *[images[piece.image]] * (len(piece.ids) - 2), piece.ids[-1]]
    return tokens


def _shared_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Return how many first elements of two lists are equal; halves are compared as a whole, which is fast."""
    same, end = 0, min(len(left), len(right))
    if left[:end] == right[:end]:
        return end
    while end - same > 1:  # the first difference is in same .. end - 1
        middle = (same + end) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            end = middle
    return same


def _unread_features(pieces: Sequence[Piece], images: Sequence[EncodedImages], kept: int) -> torch.Tensor | None:
    """Return the features `(features, hidden)` of the image tokens that follow the first `kept` tokens of a prompt."""
    unread, start = [], 0
    for piece in pieces:
        if piece.image is not None:
            features = images[piece.image].features.flatten(0, 1)  # (image tokens, hidden)
            unread.append(features[max(kept - start - 1, 0) :])  # before them stands the token that begins the image
        start += len(piece.ids)
    unread = [features for features in unread if len(features)]
    return torch.cat(unread) if unread else None


def _extends_a_cache(generation_config: GenerationOptions, defaults: Any) -> bool:
    """Return whether `generate` with these options extends an ordinary cache of one row."""
    options = read_options(generation_config)
    given = options.get("generation_config", defaults)
    values = {name: options.get(name, getattr(given, name, None)) for name in CACHELESS_OPTIONS}
    return all(values[name] in (None, harmless) for name, harmless in CACHELESS_OPTIONS.items())
