"""Training without all logits at once: the next-token loss in chunks of tokens, and the model without its output head.

Of the loss, float32 logits exist for one chunk at a time, in both directions. Trainers that compute it themselves, as
TRL's do, run the model's `base_model` and multiply its last states by the output head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .compat_internvl import cache_argument, pop_cache


# Tokens whose logits are in float32 at once: 190 MB for a vocabulary of 92553.
CHUNK_TOKENS = 512
IGNORED_LABEL = -100
# Settings of Transformers' language models that change the output head's logits.
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def next_token_loss(
    states: torch.Tensor,
    labels: torch.LongTensor | None,
    head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    loss_weight: torch.Tensor | None = None,
    shift_labels: torch.LongTensor | None = None,
) -> torch.Tensor:
    """Return the loss of predicting each token from the one before it.

    Args:
        states: Logits `(batch, seq, vocab)`; or, with a head, its inputs, `(batch, seq, hidden)`.
        labels: Tokens to learn `(batch, seq)`, not shifted; -100 is ignored.
        head: Turns states into logits, chunk by chunk, so that the logits never exist all at once.
        num_items_in_batch: What the sum of all losses is divided by; None means the number of tokens to learn.
        loss_weight: Weight of each label `(batch, seq)`; the loss is then their weighted mean.
        shift_labels: The token to learn at each position `(batch, seq)`, already shifted, instead of `labels`.

    Returns:
        The loss, a scalar in float32.

    Raises:
        ValueError: If labels and shifted labels contradict each other, or weights come without labels.
    """
    labels = _targets(labels, shift_labels, loss_weight).to(states.device)
    states = states.flatten(0, 1)  # (batch * seq, vocab or hidden)
    losses = torch.cat(
        [
            checkpoint(_losses, part, targets, head, use_reentrant=False, preserve_rng_state=False)
            for part, targets in zip(states.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True)
        ]
    )  # (batch * seq,)
    if loss_weight is not None:
        loss_weight = _next_of_each(loss_weight.to(losses), 0.0)
        return (losses * loss_weight).sum() / loss_weight.sum()
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORED_LABEL).sum()
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(losses.device)
    return losses.sum() / num_items_in_batch


def _targets(
    labels: torch.LongTensor | None, shift_labels: torch.LongTensor | None, loss_weight: torch.Tensor | None
) -> torch.LongTensor:
    """Return the token to learn at each position, `(batch * seq,)`."""
    if shift_labels is None:
        return _next_of_each(labels, IGNORED_LABEL)
    if loss_weight is not None:
        raise ValueError("loss_weight belongs to labels, but the labels are given as shift_labels; give labels.")
    # A shard of a sequence may know the label behind its last token, which unshifted labels do not hold.
    if labels is not None and not torch.equal(shift_labels[:, :-1], labels[:, 1:].to(shift_labels)):
        raise ValueError("labels and shift_labels contradict each other; give one of them.")
    return shift_labels.flatten()  # (batch * seq,)


def _next_of_each(values: torch.Tensor, last: float) -> torch.Tensor:
    """Return for each position the value of the next one, `(batch * seq,)`; nothing follows a row's last."""
    return nn.functional.pad(values[:, 1:], (0, 1), value=last).flatten()  # (batch * seq,)


def _losses(states: torch.Tensor, labels: torch.Tensor, head: Callable | None) -> torch.Tensor:
    logits = states if head is None else head(states)
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="none")


def check_loss_arguments(
    has_labels: bool, loss_weight: torch.Tensor | None, logits_to_keep: int | torch.Tensor, skip_logits: bool
) -> None:
    """Refuse arguments of `forward` that contradict each other, see there.

    Raises:
        ValueError: If they do.
    """
    keeps_some = isinstance(logits_to_keep, torch.Tensor) or logits_to_keep != 0
    if skip_logits and not has_labels:
        raise ValueError("skip_logits is set, but there are no labels; nothing would be computed. Pass labels.")
    if loss_weight is not None and not has_labels:
        raise ValueError("loss_weight is given, but there are no labels to weigh; pass labels.")
    if has_labels and keeps_some:
        raise ValueError("labels need the logits of all positions, but logits_to_keep asks for some; leave it out.")


def plain_head(config: PretrainedConfig, head: nn.Module) -> nn.Module:
    """Return an output head, if the logits are its output unchanged.

    Args:
        config: Of the language model.
        head: Its output head.

    Returns:
        The head.

    Raises:
        ValueError: If the language model changes the head's logits.
    """
    scaled = [name for name in SCALED_LOGITS if getattr(config, name, None) not in (None, 1.0)]
    if scaled:
        raise ValueError(
            f"skip_logits needs logits that come straight from the output head, but llm_config sets {scaled}."
        )
    return head


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
