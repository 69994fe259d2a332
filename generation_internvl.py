"""Generation from a prompt with pictures: they are encoded once, and every step is told what the prompt holds.

The steps themselves are Transformers'; each of them calls `InternVLChatModel.forward`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Cache

from .image_features_internvl import EncodedImages, check_places


class PictureGenerationMixin:
    """Pictures for `GenerationMixin`, in a model with `config`, `embed_inputs` and `get_input_embeddings`."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        *,
        pixel_values: torch.Tensor | EncodedImages | None = None,
        image_flags: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        vision_batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue a prompt; pictures are encoded once, before the first step.

        Args:
            input_ids: Prompt tokens `(batch, seq)`; or pass `inputs_embeds`.
            pixel_values: See `embed_inputs`; None for text alone.
            image_flags: See `embed_inputs`.
            visual_features: See `embed_inputs`.
            vision_batch_size: See `get_image_features`.
            **kwargs: Everything that `GenerationMixin.generate` takes.

        Returns:
            What `GenerationMixin.generate` returns: prompt and new tokens `(batch, total)`, or the new tokens alone
            when only `inputs_embeds` is given.

        Raises:
            TypeError: If all inputs are given as one mapping, as a processor returns them.
            ValueError: If text and pictures do not fit.
        """
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        if isinstance(input_ids, Mapping):
            raise TypeError(
                f"input_ids is a {type(input_ids).__name__} with {', '.join(input_ids)}, expected a tensor; unpack "
                "all of them: generate(**inputs)."
            )
        has_pictures = pixel_values is not None or visual_features is not None
        if has_pictures and input_ids is None:
            raise ValueError("Pictures need input_ids with places for them, but none were given; build both together.")
        if has_pictures:
            # Transformers decodes with a cache whenever it gets inputs_embeds, also when asked not to.
            name = "inputs_embeds" if _wants_cache(kwargs) else "prompt_embeds"
            kwargs[name] = self.embed_inputs(
                input_ids, pixel_values, image_flags, visual_features, vision_batch_size=vision_batch_size
            )
        elif (
            input_ids is not None and kwargs.get("inputs_embeds") is None and _is_empty(kwargs.get("past_key_values"))
        ):
            image_token_id = self.config.image_token_id
            check_places(int((input_ids == image_token_id).sum()), 0, image_token_id)
        return super().generate(input_ids=input_ids, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare one step. The prompt's embeddings hold the pictures, so they must never give way to its ids.

        Transformers does so by itself except without a cache, where every step sees the prompt again, and in releases
        up to 5.0 with a cache that holds the beginning of the prompt, where only the rest is new.
        """
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, past_key_values=past_key_values, **kwargs
        )
        if prompt_embeds is not None:
            new_embeds = self.get_input_embeddings()(input_ids[:, prompt_embeds.shape[1] :]).to(prompt_embeds)
            model_inputs["inputs_embeds"] = torch.cat([prompt_embeds, new_embeds], dim=1)
            model_inputs["input_ids"] = None
        elif inputs_embeds is not None and past_key_values is not None and kwargs.get("is_first_iteration", True):
            cached = int(past_key_values.get_seq_length())
            if 0 < cached < inputs_embeds.shape[1]:
                model_inputs["inputs_embeds"] = inputs_embeds[:, cached:]
                model_inputs["input_ids"] = None
                for name in ("position_ids", "cache_position"):
                    if model_inputs.get(name) is not None:
                        model_inputs[name] = model_inputs[name][..., cached - inputs_embeds.shape[1] :]
        return model_inputs


def is_further_step(input_ids: torch.LongTensor, cache: Cache | None) -> bool:
    """Say whether these tokens follow others; a single one does, so that no step of decoding waits for the device.

    Args:
        input_ids: Tokens `(batch, seq)`.
        cache: The cache that they are added to, if there is one.

    Returns:
        Whether pictures, if there are any, came before.
    """
    return cache is not None and (input_ids.shape[1] == 1 or not _is_empty(cache))


def _is_empty(cache: Cache | None) -> bool:
    return cache is None or int(cache.get_seq_length()) == 0


def _wants_cache(generate_kwargs: dict[str, Any]) -> bool:
    use_cache = generate_kwargs.get("use_cache")
    if use_cache is None:
        use_cache = getattr(generate_kwargs.get("generation_config"), "use_cache", None)
    return use_cache is not False
