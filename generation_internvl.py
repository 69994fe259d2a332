"""Generation from a prompt with images, which are encoded once and ride beside its ids.

The steps themselves are Transformers'; each of them calls `InternVLChatModel.forward`. In every mode of generation,
`input_ids` are the prompt, and `PromptFeatures` holds the features of its image tokens.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.utils import logging

from .compat_internvl import PREFILL_CHUNKS_IGNORE_CACHE, DraftInputsMixin, first_slot, is_paged, pop_cache
from .image_features_internvl import ImageInput, PromptFeatures, check_image_tokens, feature_index
from .inputs_internvl import fitting_mask, token_ids
from .rope_internvl import check_takes_fractions, fractional_positions, image_stride


logger = logging.get_logger(__name__)

# Arguments of `generate` that ask for draft tokens, which are drafted from and verified with the prompt's ids.
GUESSING_ARGUMENTS = ("assistant_model", "prompt_lookup_num_tokens")


class ImageGenerationMixin(DraftInputsMixin):
    """Images for `GenerationMixin`, in a model with `config`, `image_rows` and `embed_inputs`."""

    # Whether `generate` takes `prompt_features`; a text-only assistant does not.
    takes_prompt_features = True

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        generation_config: Any = None,
        *,
        pixel_values: ImageInput | None = None,
        image_flags: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        vision_batch_size: int | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_token_id: int | None = None,
        prompt_features: PromptFeatures | None = None,
        rope_pos_id_version: str | None = None,
        rope_pos_id_stride: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue a prompt in evaluation mode, also in the middle of training; images are encoded once.

        Args:
            input_ids: Prompt tokens `(batch, seq)`; `inputs` means the same. With a cache the whole sequence, or the
                new tokens alone beside an `attention_mask` of the whole.
            generation_config: See `GenerationMixin.generate`.
            pixel_values: See `embed_inputs`; None for text alone. With a cache, the images of the whole sequence or
                those of its new tokens.
            image_flags: See `embed_inputs`.
            visual_features: See `embed_inputs`.
            vision_batch_size: See `get_image_features`.
            inputs_embeds: Embeddings of the prompt `(batch, seq, hidden)` instead of its word embeddings; images are
                put into them. Without `input_ids` only the new tokens are returned.
            image_token_id: See `embed_inputs`.
            prompt_features: Images that the main model encoded, for a model that assists it.
            rope_pos_id_version: "v2pe_fix" for image tokens that advance by less than one position, see
                `rope_internvl.image_stride`.
            rope_pos_id_stride: Positions for 256 image tokens, with "v2pe_fix".
            **kwargs: Everything else that `GenerationMixin.generate` takes.

        Returns:
            What `GenerationMixin.generate` returns: prompt and new tokens `(batch, total)`, or the new tokens alone
            when only `inputs_embeds` is given.

        Raises:
            TypeError: If all inputs are given as one mapping, as a processor returns them.
            ValueError: If text and images do not fit, or guesses are asked for without ids.
        """
        input_ids = _prompt_ids(input_ids, kwargs, getattr(self.get_input_embeddings(), "num_embeddings", None))
        cache = pop_cache(kwargs)
        if input_ids is not None and kwargs.get("attention_mask") is not None:
            (batch, seq), num_cached = input_ids.shape, int(first_slot(cache, {}))
            kwargs["attention_mask"] = fitting_mask(kwargs["attention_mask"], batch, seq + num_cached, seq)
        image_token_id = self.config.image_token_id if image_token_id is None else image_token_id
        images = {
            "pixel_values": pixel_values,
            "image_flags": image_flags,
            "visual_features": visual_features,
            "vision_batch_size": vision_batch_size,
        }
        _check_guesses(kwargs, generation_config, cache)
        stride = image_stride(rope_pos_id_version, rope_pos_id_stride)
        with answering(self):
            if prompt_features is not None:
                kwargs["prompt_features"] = self._own_features(prompt_features, vision_batch_size)
            elif input_ids is None or input_ids.shape[1] == 0:
                _check_guesses(kwargs, generation_config, None, has_ids=False)
                if (inputs_embeds := self._prompt_embeds(None, inputs_embeds, images, image_token_id)) is not None:
                    kwargs["inputs_embeds"] = inputs_embeds
            elif inputs_embeds is not None:
                inputs_embeds = self._prompt_embeds(input_ids, inputs_embeds, images, image_token_id)
                index = torch.arange(input_ids.numel(), device=inputs_embeds.device).view_as(input_ids)  # (batch, seq)
                features = inputs_embeds.flatten(0, 1)  # (batch * seq, hidden)
                kwargs["prompt_features"] = PromptFeatures(features, _of_whole_sequence(index, kwargs), self)
            else:
                kwargs["prompt_features"] = self._prompt_features(input_ids, images, image_token_id, cache, kwargs)
            if stride is not None:
                features = kwargs.get("prompt_features") if inputs_embeds is None else None
                self._set_positions(features, input_ids, image_token_id, stride, kwargs)
            return super().generate(input_ids, generation_config, past_key_values=cache, **kwargs)

    def generate_batch(
        self, inputs: Sequence[Sequence[int]], generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Any:
        """Continue many prompts of text by continuous batching, in the language model.

        Args:
            inputs: The ids of each prompt.
            generation_config: Settings of all prompts; None for the model's own.
            **kwargs: Everything else that `ContinuousMixin.generate_batch` takes.

        Returns:
            What `ContinuousMixin.generate_batch` returns.

        Raises:
            ValueError: If a prompt has image tokens: Transformers' continuous batching passes ids alone.
        """
        for number, ids in enumerate(inputs):
            if self.config.image_token_id in ids:
                raise ValueError(
                    f"inputs[{number}] has image tokens, but continuous batching passes no images to the model; use "
                    "generate() or batch_chat() for prompts with images."
                )
        settings = self.generation_config if generation_config is None else generation_config
        with answering(self):
            return self.language_model.generate_batch(inputs, generation_config=settings, **kwargs)

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # generate asks its signature what a model can do
    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the inputs of one step; the images of the prompt are among them until the whole prompt is read.

        Args:
            input_ids: All tokens so far, `(batch, seq)`.
            *args: See `GenerationMixin.prepare_inputs_for_generation`.
            **kwargs: See `GenerationMixin.prepare_inputs_for_generation`.

        Returns:
            Arguments of `forward`.
        """
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        given, step = inputs.get("prompt_features"), inputs.get("input_ids")
        is_needed = given is None or step is None or given.positions is not None  # which go on behind the prompt
        if not is_needed and input_ids.shape[1] - step.shape[1] >= given.index.shape[1]:
            del inputs["prompt_features"]
        return inputs

    def draft_inputs(self, assistant_model: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of an assistant: one for text alone guesses after the image tokens without their features.

        Args:
            assistant_model: The assistant; None for guesses from the prompt.
            model_kwargs: The inputs of this model.

        Returns:
            The inputs.
        """
        if getattr(assistant_model, "takes_prompt_features", False):
            return model_kwargs
        return {name: value for name, value in model_kwargs.items() if name != "prompt_features"}

    def _prompt_embeds(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        images: Mapping[str, Any],
        image_token_id: int,
    ) -> torch.Tensor | None:
        """Return a caller's own embeddings `(batch, seq, hidden)` of a prompt, with the images in them."""
        has_images = images["pixel_values"] is not None or images["visual_features"] is not None
        if inputs_embeds is None and has_images:
            raise ValueError("Images need input_ids with image tokens, but none were given; build both together.")
        if inputs_embeds is None or not has_images:
            return inputs_embeds
        return self.embed_inputs(input_ids, inputs_embeds=inputs_embeds, image_token_id=image_token_id, **images)

    def _prompt_features(
        self,
        input_ids: torch.LongTensor,
        images: Mapping[str, Any],
        image_token_id: int,
        cache: Cache | None,
        kwargs: Mapping[str, Any],
    ) -> PromptFeatures:
        """Encode the images of a prompt and number its image tokens."""
        features, _ = self.image_rows(**images)
        num_features = 0 if features is None else len(features)
        is_image = input_ids == image_token_id  # (batch, seq)
        num_cached = int(first_slot(cache, {}))
        if num_cached and int(is_image.sum()) != num_features:
            slots = torch.arange(input_ids.shape[1], device=input_ids.device)
            is_image = is_image & (slots >= num_cached - _num_before(input_ids, kwargs))  # the new tokens' images
        check_image_tokens(int(is_image.sum()), num_features, image_token_id)
        index = _of_whole_sequence(feature_index(is_image), kwargs)
        tiles = images["pixel_values"] if isinstance(images["pixel_values"], torch.Tensor) else None
        return PromptFeatures(features, index.to(self.device), self, tiles, images["image_flags"])

    def _set_positions(
        self,
        features: PromptFeatures | None,
        input_ids: torch.LongTensor | None,
        image_token_id: int,
        stride: float,
        kwargs: dict[str, Any],
    ) -> None:
        """Give a prompt the positions of V2PE."""
        if features is None or _num_before(input_ids, kwargs):
            raise ValueError(
                "V2PE is asked for, whose positions follow from all tokens before; give the input_ids of the whole "
                "sequence, without inputs_embeds."
            )
        check_takes_fractions(self.language_model)
        mask = kwargs.get("attention_mask")
        is_image = input_ids == image_token_id  # (batch, seq)
        features.positions = fractional_positions(is_image, mask, stride).to(self.device)

    def _own_features(self, given: PromptFeatures, vision_batch_size: int | None) -> PromptFeatures:
        """Return the features of images that another model encoded, which this one assists."""
        if given.model is self:
            return given
        if given.features is not None and id(self) not in given.of_assistants:
            given.of_assistants[id(self)] = self._encoded_anew(given, vision_batch_size)
        features = given.of_assistants.get(id(self))
        positions = None if given.positions is None else given.positions.to(self.device)
        return PromptFeatures(features, given.index.to(self.device), self, positions=positions)

    def _encoded_anew(self, given: PromptFeatures, vision_batch_size: int | None) -> torch.Tensor | None:
        """Return this model's features `(features, hidden)` of images, None if it must do without."""
        if given.pixel_values is not None:
            features, _ = self.image_rows(given.pixel_values, given.image_flags, None, vision_batch_size)
            if len(features) == len(given.features):
                return features
        elif given.features.shape[1] == self.config.llm_config.hidden_size:
            return given.features  # its own, if it is a copy; else guesses that are checked like all others
        logger.warning_once(
            "The assistant cannot encode the images of this prompt, so its guesses are those of a text-only model."
        )
        return None


def _prompt_ids(input_ids: Any, kwargs: dict[str, Any], vocab_size: int | None) -> torch.LongTensor | None:
    """Return the ids of a prompt, under either of their names."""
    inputs = kwargs.pop("inputs", None)
    if input_ids is not None and inputs is not None:
        raise ValueError("input_ids and inputs are both given, and both are the prompt's tokens; give one of them.")
    input_ids = inputs if input_ids is None else input_ids
    if isinstance(input_ids, Mapping):
        raise TypeError(
            f"input_ids is a {type(input_ids).__name__} with {', '.join(input_ids)}, expected a tensor; unpack "
            "all of them: generate(**inputs)."
        )
    return None if input_ids is None else token_ids(input_ids, vocab_size)


def _check_guesses(
    kwargs: Mapping[str, Any], generation_config: Any, cache: Cache | None, has_ids: bool = True
) -> None:
    """Refuse guesses where Transformers would check them against another text than the prompt."""
    settings = {name: kwargs.get(name, getattr(generation_config, name, None)) for name in GUESSING_ARGUMENTS}
    asked = [name for name, value in settings.items() if value is not None]
    if asked and not has_ids:
        raise ValueError(f"{asked[0]} needs the prompt's input_ids, but only inputs_embeds are given; give both.")
    chunks = kwargs.get("prefill_chunk_size", getattr(generation_config, "prefill_chunk_size", None))
    mask = kwargs.get("attention_mask")
    is_ragged = int(first_slot(cache, {})) or (mask is not None and not bool(mask.all()))
    if PREFILL_CHUNKS_IGNORE_CACHE and chunks is not None and is_ragged:
        raise ValueError(
            "prefill_chunk_size is given with padding or a cache that holds tokens, which chunked prefill of this "
            "release of Transformers ignores; leave it out or use a later release."
        )
    if asked and (num_cached := int(first_slot(cache, {}))):
        raise ValueError(
            f"{asked[0]} is given with a cache that holds {num_cached} tokens, but guesses are verified from the "
            "start of the prompt; leave out the cache or the guesses."
        )


def _num_before(input_ids: torch.LongTensor, kwargs: dict[str, Any]) -> int:
    """Return how many tokens of the whole sequence come before these: those that only the attention mask has."""
    mask = kwargs.get("attention_mask")
    return max(mask.shape[-1] - input_ids.shape[1], 0) if mask is not None else 0


def _of_whole_sequence(index: torch.LongTensor, kwargs: dict[str, Any]) -> torch.LongTensor:
    """Widen an index of the given tokens `(batch, seq)` to the whole sequence, whose first tokens are in a cache."""
    return nn.functional.pad(index, (_num_before(index, kwargs), 0), value=-1)


class _Mode:
    """What `answering` must restore on a model: the modules that were in training when the first call began."""

    def __init__(self) -> None:
        self.calls = 0
        self.in_training: list[nn.Module] = []

    def evaluate(self, model: nn.Module) -> None:
        in_training = [module for module in model.modules() if module.training]
        for module in in_training:
            module.training = False
        self.in_training += in_training

    def train(self) -> None:
        for module in self.in_training:
            module.training = True
        self.in_training = []


_modes: WeakKeyDictionary[nn.Module, _Mode] = WeakKeyDictionary()
_modes_lock = threading.Lock()


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Run a model as in evaluation, without dropout and gradient checkpointing, and restore its modes.

    Calls may be nested and may come from several threads: the last one to end restores the modes.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    with _modes_lock:
        mode = _modes.setdefault(model, _Mode())
        mode.calls += 1
        mode.evaluate(model)
    try:
        yield
    finally:
        with _modes_lock:
            mode.calls -= 1
            if mode.calls == 0:
                mode.train()
                del _modes[model]


@contextmanager
def training_between_steps(model: nn.Module) -> Iterator[None]:
    """Restore the training modes of a model that is answering, for the time between two tokens of a stream.

    Args:
        model: The model; nothing happens if it is not answering.

    Yields:
        Nothing.
    """
    with _modes_lock:
        mode = _modes.get(model)
        if mode is not None:
            mode.train()
    try:
        yield
    finally:
        with _modes_lock:
            if mode is not None:
                mode.evaluate(model)


def is_further_step(input_ids: torch.LongTensor, cache: Cache | None) -> bool:
    """Say whether these tokens follow others; a single one does, so that no step of decoding waits for the device.

    Args:
        input_ids: Tokens `(batch, seq)`.
        cache: The cache that they are added to, if there is one.

    Returns:
        Whether images, if there are any, came before.
    """
    return cache is not None and (input_ids.shape[1] == 1 or bool(first_slot(cache, {}) != 0) or is_paged(cache))
