"""One answer: what a caller wants of `generate`, merged once; the call itself; and how likely its tokens are.

From strongest to weakest: an argument of the call (`streamer`), the entries of a dict `generation_config`, a
GenerationConfig (given itself or in the dict), the model's `generation_config`, the defaults for conversations below.

Log-probabilities are natural logarithms of what the model itself says, `log_softmax` of its raw logits in float32:
temperature, penalties and other settings of `generate` choose the tokens and do not change the numbers.
Shape legend: `batch`, `seq`, `tokens` of one answer, `vocab`, `hidden`.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from .compat_internvl import DEFAULT_MAX_LENGTHS
from .conversation_internvl import History, Piece, PromptEncoder, turns_of_history
from .prompt_format_internvl import IMAGE_CONTEXT_TOKEN, Turn, prompt_format


GenerationOptions = Mapping[str, Any] | GenerationConfig | None

# What of a prompt's inputs goes to the device of the embedding.
PROMPT_NAMES = ("input_ids", "attention_mask")
# The official default stops after 20 tokens, which no user expects; the model card's examples ask for this many.
DEFAULT_MAX_NEW_TOKENS = 1024
# What `generate` must return for the log-probabilities of its answer; one answer is generated.
SCORED_OUTPUT = {"num_return_sequences": 1, "return_dict_in_generate": True, "output_logits": True}


def read_options(generation_config: GenerationOptions) -> dict[str, Any]:
    """Return a caller's options as keyword arguments of `generate`; the caller's objects stay as they are.

    Raises:
        ValueError: If they are not options.
    """
    if isinstance(generation_config, GenerationConfig):
        return {"generation_config": generation_config}
    if not isinstance(generation_config, (Mapping, type(None))):
        raise ValueError(
            f'generation_config is {generation_config!r}; expected a dict such as {{"max_new_tokens": 64}}, or a '
            "GenerationConfig."
        )
    return {name: value for name, value in (generation_config or {}).items() if value is not None}


def answer_options(
    generation_config: GenerationOptions,
    defaults: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
    stop: str,
    **arguments: Any,
) -> dict[str, Any]:
    """Merge everything that decides how an answer is generated.

    Args:
        generation_config: What the caller wants, see `read_options`.
        defaults: The model's own settings.
        tokenizer: Names the tokens that end and pad an answer.
        stop: The token that ends a turn of the conversation.
        **arguments: Further keyword arguments of `generate`, which take precedence; None is no argument.

    Returns:
        Keyword arguments of `generate`: a `generation_config` that holds all settings, and what is not a setting.
    """
    options = read_options(generation_config) | {name: value for name, value in arguments.items() if value is not None}
    given = options.pop("generation_config", None)
    config = copy.deepcopy(defaults if given is None else given)
    has_eos = options.get("eos_token_id") is not None or (given is not None and given.eos_token_id is not None)
    rest = config.update(**options)
    if not has_eos:
        config.eos_token_id = _ends(defaults, tokenizer, stop)
    if config.pad_token_id is None:
        # Padding is masked, so any token serves where a tokenizer has none.
        ids = (defaults.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        config.pad_token_id = next(token_id for token_id in ids if token_id is not None)
    if config.max_new_tokens is None and config.max_length in DEFAULT_MAX_LENGTHS:
        config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
    return {"generation_config": config, **rest}


def _ends(defaults: GenerationConfig, tokenizer: PreTrainedTokenizerBase, stop: str) -> list[int]:
    """Return every token that ends an answer."""
    ids = defaults.eos_token_id
    ids = set(ids if isinstance(ids, list) else [ids])
    ids |= {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(stop)}
    return sorted(ids - {None, tokenizer.unk_token_id})


def seeing_answer_alone(
    options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, prompt_length: int
) -> dict[str, Any]:
    """Restrict processors, criteria and streamers to the answer, without its prompt, as in the official code.

    There a prompt is given as embeddings, so penalties, stop strings, a caller's own processors and criteria, and
    streamers never see it.

    Args:
        options: What `answer_options` returns.
        tokenizer: The tokenizer, for stop strings.
        prompt_length: Tokens of the prompt, padding included.

    Returns:
        Keyword arguments of `generate`.
    """
    config = copy.copy(options["generation_config"])  # its values stay as they are
    rest = {name: value for name, value in options.items() if name != "generation_config"}
    processors = [*_processors(config, rest), *(rest.pop("logits_processor", None) or ())]
    criteria = [*(rest.pop("stopping_criteria", None) or ())]
    if config.stop_strings:
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
        config.stop_strings = None
    if processors:
        rest["logits_processor"] = LogitsProcessorList(_AnswerProcessor(one, prompt_length) for one in processors)
    if criteria:
        rest["stopping_criteria"] = StoppingCriteriaList(_AnswerCriteria(one, prompt_length) for one in criteria)
    if rest.get("streamer") is not None:
        rest["streamer"] = _AnswerStreamer(rest["streamer"])
    return {"generation_config": config, **rest}


def _processors(config: GenerationConfig, rest: dict[str, Any]) -> Iterable[LogitsProcessor]:
    """Take those settings out of a config that look at the words of a text, and yield their processors."""
    if config.repetition_penalty not in (None, 1.0):
        yield RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
    if config.no_repeat_ngram_size:
        yield NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)
    if config.sequence_bias is not None:
        yield SequenceBiasLogitsProcessor(config.sequence_bias)
    if config.bad_words_ids is not None:
        yield NoBadWordsLogitsProcessor(config.bad_words_ids, config.eos_token_id)
    if (allowed := rest.pop("prefix_allowed_tokens_fn", None)) is not None:
        yield PrefixConstrainedLogitsProcessor(allowed, config.num_beams or 1)
    config.repetition_penalty, config.no_repeat_ngram_size = 1.0, 0
    config.sequence_bias = config.bad_words_ids = None


class _AnswerProcessor(LogitsProcessor):
    def __init__(self, processor: LogitsProcessor, prompt_length: int) -> None:
        self.processor, self.prompt_length = processor, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        return self.processor(input_ids[:, self.prompt_length :], scores)


class _AnswerCriteria(StoppingCriteria):
    def __init__(self, criterion: StoppingCriteria, prompt_length: int) -> None:
        self.criterion, self.prompt_length = criterion, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        return self.criterion(input_ids[:, self.prompt_length :], scores, **kwargs)


class _AnswerStreamer(BaseStreamer):
    """Passes tokens on to a streamer, which gets an empty prompt first."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer = streamer
        self.has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        self.streamer.put(value if self.has_prompt else value[:, :0])
        self.has_prompt = True

    def end(self) -> None:
        self.streamer.end()


class Answerer:
    """A model with its tokenizer, prompt format and system message: prompts in, answers out.

    It keeps nothing of a conversation.

    Args:
        model: The model.
        tokenizer: The checkpoint's tokenizer.
        system: System message; None means the model's.
        encoder: A `PromptEncoder` of the tokenizer that is there already.

    Raises:
        ValueError: If the system message is not text, or the model's template is unknown.
        TypeError: If it is not a tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        encoder: PromptEncoder | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.style = prompt_format(model.config.template)
        self.system = model.system_message if system is None else system
        if not isinstance(self.system, str):
            raise ValueError(f"system is {self.system!r}; expected text.")
        self.encoder = PromptEncoder(tokenizer) if encoder is None else encoder

    @property
    def image_token_id(self) -> int:
        """Id of the tokenizer's image token."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT_TOKEN)

    def prompt(self, turns: History, num_tiles: Sequence[int], tile_tokens: int) -> list[Piece]:
        """Encode a conversation.

        Args:
            turns: (question, answer) pairs, the last of which awaits its answer.
            num_tiles: Tiles of each image; without any, `<image>` is text.
            tile_tokens: Image tokens of one tile.

        Returns:
            The pieces of the prompt.

        Raises:
            ValueError: See `PromptEncoder.encode`.
        """
        (*history, (question, _)) = turns
        items = turns_of_history(history, question, has_images=bool(num_tiles))
        return self.encoder.encode(self.style, items, num_tiles, tile_tokens, system=self.system)

    def generate(self, inputs: Mapping[str, Any], generation_config: GenerationOptions, **arguments: Any) -> Any:
        """Generate from prompts.

        Args:
            inputs: `input_ids` and `attention_mask` `(batch, seq)`, images and a cache, as `generate` takes them.
            generation_config: What the caller wants.
            **arguments: Further arguments of `generate`, which take precedence.

        Returns:
            What `generate` returns, with sequences of new tokens alone.
        """
        options = answer_options(
            generation_config, self.model.generation_config, self.tokenizer, self.style.stop, **arguments
        )
        length, device = inputs["input_ids"].shape[1], self.model.device
        output = self.model.generate(
            **{name: part.to(device) if name in PROMPT_NAMES else part for name, part in inputs.items()},
            image_token_id=self.image_token_id,
            **seeing_answer_alone(options, self.tokenizer, length),
        )
        if isinstance(output, torch.Tensor):
            return output[:, length:]
        output.sequences = output.sequences[:, length:]
        return output

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode an answer."""
        return self.encoder.decode(token_ids, self.style.stop, self.style.answer_header).strip()


def id_rows(rows: Sequence[Sequence[int]]) -> torch.LongTensor:
    """Return rows of ids of one length as a tensor `(rows, seq)`; NumPy reads lists ten times as fast as PyTorch."""
    return torch.from_numpy(np.array(rows, dtype=np.int64))


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
    model: PreTrainedModel, cache: Cache, first: torch.Tensor, rows: Sequence[Sequence[int]]
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
