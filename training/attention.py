"""Attention for training: on CPUs the fused attention's backward pass is slower than plain products."""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask


PLAIN = "plain_products"


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain products, with the softmax in the dtype of the weights.

    The package's eager attention takes the language model's softmax in fp32, as the published model does; training
    does not need that, and it takes longer.

    Args:
        module: The attention module, for its group size.
        query: (batch, heads, seq, head_dim).
        key: (batch, kv_heads, kv_seq, head_dim), value alike.
        value: See `key`.
        attention_mask: Added to the scores (batch, 1, seq, kv_seq), or None.
        scaling: Factor on the scores.
        **kwargs: Other entries of Transformers' attention interface, unused.

    Returns:
        The output (batch, seq, heads, head_dim) and the weights (batch, heads, seq, kv_seq).
    """
    key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    scores = (query * scaling) @ key.transpose(-2, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1)
    return (weights @ value).transpose(1, 2), weights


def use_plain_attention(model: PreTrainedModel) -> None:
    """Let the vision encoder and the language model of an InternVL attend in plain products from now on."""
    AttentionInterface.register(PLAIN, plain_attention)
    AttentionMaskInterface.register(PLAIN, eager_mask)
    model.vision_model.set_attn_implementation("eager")
    model.language_model.set_attn_implementation(PLAIN)
