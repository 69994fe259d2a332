"""The model without its output head, under the name by which trainers look for it.

Trainers that never hold all logits at once (TRL's do not) run the model's `base_model` and multiply its last states by
the output head themselves. No weights here: parameter names are the checkpoint's.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .compat_internvl import cache_argument, pop_cache


class InternVLBackbone:
    """Calls an InternVL model up to the last states of its language model.

    Args:
        model: The whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.config = model.config
        self.get_image_features = model.get_image_features
        # Transformers asks a model's base for these; the whole model's plans are in its parts.
        self._tp_plan, self._pp_plan = {}, {}

    def __call__(
        self,
        pixel_values: Any = None,
        input_ids: torch.LongTensor | None = None,
        image_flags: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        vision_batch_size: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Read text and images.

        Args:
            pixel_values: See `InternVLChatModel.embed_inputs`.
            input_ids: See there; or give `inputs_embeds`.
            image_flags: See there.
            inputs_embeds: Ready embeddings `(batch, seq, hidden)` instead of `input_ids`; images are put into them.
            visual_features: See `embed_inputs`.
            vision_batch_size: See `embed_inputs`.
            **kwargs: Passed to the language model (`attention_mask`, `position_ids`, `use_cache`, …).

        Returns:
            What the language model returns without its head; `last_hidden_state` is `(batch, seq, hidden)`.

        Raises:
            ValueError: If text and images do not fit.
        """
        cache = pop_cache(kwargs)
        images = {
            "pixel_values": pixel_values,
            "image_flags": image_flags,
            "visual_features": visual_features,
            "vision_batch_size": vision_batch_size,
        }
        inputs_embeds = self._model.embeds_of_step(input_ids, inputs_embeds, images, cache)
        return self._model.get_decoder()(inputs_embeds=inputs_embeds, **cache_argument(cache), **kwargs)
