"""What a caller wants of `generate`, merged once, with one precedence; and what looks at the answer alone.

From strongest to weakest: an argument of the call (`streamer`), the entries of a dict `generation_config`, a
GenerationConfig (given itself or in the dict), the model's `generation_config`, the defaults for conversations below.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from .compat_internvl import DEFAULT_MAX_LENGTHS


GenerationOptions = Mapping[str, Any] | GenerationConfig | None

# The official default stops after 20 tokens, which no user expects; the model card's examples ask for this many.
DEFAULT_MAX_NEW_TOKENS = 1024


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
        # Padding is masked, so any token will do where a tokenizer names none.
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
    """Let whatever looks at the text so far see the answer without its prompt, as in the official code.

    There a prompt is given as embeddings, so penalties, stop strings, a caller's own processors and criteria, and
    streamers never see it.

    Args:
        options: What `answer_options` returns.
        tokenizer: The tokenizer, for stop strings.
        prompt_length: Tokens of the prompt, padding included.

    Returns:
        Keyword arguments of `generate`.
    """
    config = copy.deepcopy(options["generation_config"])
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
    """Take those settings out of a config that look at the words of a text, and yield what they ask for."""
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
