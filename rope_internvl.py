"""Dynamic RoPE without memory: the frequencies of a call follow from its own length alone."""

from typing import Any

from torch import nn


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
