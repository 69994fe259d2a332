"""Rotary positions: dynamic RoPE without memory, and V2PE, whose image tokens advance by less than one.

Dynamic RoPE of a call follows from its own length alone.
"""

import math
from itertools import groupby
from typing import Any

import torch
from torch import nn


# How far an image token advances under V2PE, in positions of text: the stride over this many.
TOKENS_PER_STRIDE = 256
POSITION_VERSIONS = ("default", "v2pe_fix")
POSITION_OPTIONS = ("rope_pos_id_version", "rope_pos_id_stride")


def forget_longer_calls(language_model: nn.Module) -> None:
    """Reset dynamic RoPE before each call of one of Transformers' own language models.

    They keep the frequencies of the longest call, so that a call below or at the limit depends on those before it.

    Args:
        language_model: The model, changed in place; models without dynamic RoPE stay as they are.
    """
    for module in language_model.modules():
        if getattr(module, "rope_type", None) == "dynamic" and hasattr(module, "max_seq_len_cached"):
            module.register_forward_pre_hook(_reset)


def _reset(rotary: nn.Module, args: Any) -> None:
    # A copy: some releases write new frequencies into the buffer.
    rotary.inv_freq = rotary.original_inv_freq.to(rotary.inv_freq.device, copy=True)
    rotary.max_seq_len_cached = rotary.original_max_seq_len


def image_stride(version: str | None, stride: float | None) -> float | None:
    """Read how V2PE (InternVL3, arXiv 2412.09616) is asked for.

    Args:
        version: "v2pe_fix" for positions of image tokens that advance by a part of one; "default" and None for whole
            ones.
        stride: Positions for 256 image tokens.

    Returns:
        The stride; None for whole positions.

    Raises:
        ValueError: If the version is unknown, or it and the stride do not go together.
    """
    if version not in (None, *POSITION_VERSIONS):
        raise ValueError(
            f"rope_pos_id_version is {version!r}; known are {', '.join(map(repr, POSITION_VERSIONS))}: the random "
            "strides of training are given as position_ids."
        )
    if version in (None, "default"):
        if stride is not None:
            raise ValueError(
                f"rope_pos_id_stride is {stride}, which only rope_pos_id_version='v2pe_fix' reads; give both or none."
            )
        return None
    if not isinstance(stride, (int, float)) or isinstance(stride, bool) or not 0 < stride <= TOKENS_PER_STRIDE:
        raise ValueError(f"rope_pos_id_stride is {stride!r}; expected a number above 0 and up to {TOKENS_PER_STRIDE}.")
    return stride


def fractional_positions(is_image: torch.Tensor, attention_mask: torch.Tensor | None, stride: float) -> torch.Tensor:
    """Return the positions of tokens under V2PE.

    Image tokens advance by `stride` / 256 each; the text after an image goes on behind the ceiling of the last one.

    Args:
        is_image: Whether a token is an image token, `(batch, seq)`.
        attention_mask: 1 for tokens, 0 for padding, `(batch, seq)`; None for no padding.
        stride: See `image_stride`.

    Returns:
        Positions `(batch, seq)` in float32; 0 for padding.
    """
    mask = torch.ones_like(is_image) if attention_mask is None else attention_mask.bool()
    step, rows = stride / TOKENS_PER_STRIDE, []
    for row in torch.where(mask, is_image.long(), -1).tolist():  # 1 for image tokens, 0 for text, -1 for padding
        positions, last = [], -1
        for kind, run in groupby(row):
            count = len(list(run))
            advance = {1: step, 0: 1, -1: 0}[kind]
            positions += [last + advance * number for number in range(1, count + 1)] if advance else [0] * count
            last += math.ceil(advance * count)
        rows.append(positions)
    return torch.tensor(rows, dtype=torch.float32, device=is_image.device)


def check_takes_fractions(language_model: nn.Module) -> None:
    """Refuse a language model that cannot take fractional positions.

    Args:
        language_model: The model; its rotary embedding is tried.

    Raises:
        ValueError: If it has no rotary embedding of positions between whole ones, or its attention takes them for
            several sequences in a row.
    """
    if "flash" in str(language_model.config._attn_implementation):
        raise ValueError(
            "V2PE is asked for with flash attention, which takes fractional positions for several packed sequences; "
            'load the model with attn_implementation="sdpa".'
        )
    rotaries = [module for name, module in language_model.named_modules() if name.endswith("rotary_emb")]
    if not rotaries or not all(map(_turns_by_fractions, rotaries)):
        raise ValueError(
            f"V2PE is asked for, but {type(language_model).__name__} takes no fractional positions; leave out "
            "rope_pos_id_version."
        )


@torch.no_grad()
def _turns_by_fractions(rotary: nn.Module) -> bool:
    buffer = next(rotary.buffers(), None)
    states = torch.zeros(1, 3, 1, device=None if buffer is None else buffer.device)
    try:
        cos = rotary(states, torch.tensor([[0.0, 0.5, 1.0]], device=states.device))[0]  # (1, 3, head_dim)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return not (torch.equal(cos[:, 1], cos[:, 0]) or torch.equal(cos[:, 1], cos[:, 2]))


def mask_beside(position_ids: torch.Tensor, num_cached: int | torch.Tensor) -> torch.Tensor | None:
    """Return a mask for fractional positions, None beside whole ones.

    Without a mask, Transformers takes positions that do not count by one for several packed sequences.

    Args:
        position_ids: Positions `(batch, seq)`.
        num_cached: Tokens in the cache before them.

    Returns:
        Ones `(batch, num_cached + seq)`.
    """
    if not position_ids.is_floating_point():
        return None
    batch, seq = position_ids.shape
    return torch.ones(batch, int(num_cached) + seq, dtype=torch.long, device=position_ids.device)
