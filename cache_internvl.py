"""The cache of keys and values with spare capacity: a decoding step writes its token and copies nothing else."""

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from .compat_internvl import cache_argument, pop_cache


# Tokens that fit into a layer before it is copied again: 1/256 of a copy each, and 25 MB for the 2B in 16 bits.
SPARE_TOKENS = 256
# RoPE types under which the length of a text changes the angles of all its tokens, once it is beyond a limit.
STRETCHING_ROPE_TYPES = ("dynamic", "longrope", "su")


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, views of two preallocated buffers.

    Transformers' own layer is copied whole by every token. Everything else is Transformers': an operation that
    replaces `keys` and `values`, such as reordering beams, is noticed by the next update, which allocates new buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[torch.Tensor, ...] = ()  # of keys and of values, (batch, kv_heads, capacity, head_dim)
        self._views: tuple[torch.Tensor, ...] = ()  # the parts of the buffers that hold tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens.

        Args:
            key_states: `(batch, kv_heads, seq, head_dim)`; values alike.
            value_states: See `key_states`.
            *args: What Transformers passes to some kinds of layers, unused.
            **kwargs: See `*args`.

        Returns:
            All keys and values, `(batch, kv_heads, kv_seq, head_dim)`, with strides that skip the spare capacity.
        """
        if torch.is_grad_enabled():  # autograd may need the old tensors; nothing is written over them
            self._buffers = self._views = ()
            return super().update(key_states, value_states, *args, **kwargs)
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if not self._fits(key_states, value_states, total):
            kept = (self.keys, self.values) if length else (key_states[:, :, :0], value_states[:, :, :0])
            self._allocate(*kept, total + SPARE_TOKENS)
        if not self.is_initialized:  # Transformers notes dtype and device
            super().update(key_states[:, :, :0], value_states[:, :, :0], *args, **kwargs)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:total] = states
        self._views = tuple(buffer[:, :, :total] for buffer in self._buffers)
        self.keys, self.values = self._views
        return self._views

    def reserve(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate buffers for these first tokens, see `update`, and the spare ones, before they come."""
        if self.get_seq_length() == 0 and not self._fits(key_states, value_states, key_states.shape[-2]):
            empty = key_states[:, :, :0], value_states[:, :, :0]
            self._allocate(*empty, key_states.shape[-2] + SPARE_TOKENS)

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Remove the last tokens, as Transformers' `DynamicLayer.crop` does; their capacity is used again."""
        views_buffers = self._views_buffers()
        super().crop(*args, **kwargs)
        if views_buffers:
            self._views = (self.keys, self.values)

    def _fits(self, key_states: torch.Tensor, value_states: torch.Tensor, total: int) -> bool:
        """Say whether `total` tokens, of which these are the last, fit into the buffers."""
        if self.get_seq_length():
            return self._views_buffers() and self._buffers[0].shape[-2] >= total
        pairs = zip(self._buffers, (key_states, value_states), strict=False)
        return bool(self._buffers) and all(_holds(buffer, states, total) for buffer, states in pairs)

    def _allocate(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        self._buffers = tuple(_enlarged(states, capacity) for states in (keys, values))

    def _views_buffers(self) -> bool:
        """Return whether keys and values are still views of the buffers: others may have replaced them."""
        return bool(self._buffers) and self.keys is self._views[0] and self.values is self._views[1]


class GrowingCache(DynamicCache):
    """Transformers' dynamic cache with layers of spare capacity; sliding windows and other kinds of layers stay.

    Args:
        config: The model's configuration, or its language model's, which says what kinds of layers there are.
        croppable: Whether all layers keep all tokens, so that the last ones can be removed again: a layer that keeps a
            window does not know the tokens that come back into it.
    """

    def __init__(self, config: PretrainedConfig, croppable: bool = False) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if croppable or type(layer) is DynamicLayer else layer for layer in self.layers]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens to a layer, see `GrowingLayer.update`.

        On a CPU all layers get their buffers with the first one: allocated one by one, among a prompt's short-lived
        tensors, they leave memory full of gaps.
        """
        if layer_idx == 0 and key_states.device.type == "cpu" and not torch.is_grad_enabled():
            for layer in self.layers:
                if type(layer) is GrowingLayer:
                    layer.reserve(key_states, value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class GrowingCacheMixin:
    """Gives `generate` a growing cache by default; a caller's own and other implementations are respected."""

    def generate(self, inputs: torch.Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """Continue a prompt, see `GenerationMixin.generate`.

        Args:
            inputs: Prompt tokens `(batch, seq)`.
            generation_config: See `GenerationMixin.generate`.
            **kwargs: See `GenerationMixin.generate`; the cache under any of its names.

        Returns:
            What `GenerationMixin.generate` returns.
        """
        cache = pop_cache(kwargs)
        defaults = self.generation_config if generation_config is None else generation_config
        use_cache, implementation = (
            getattr(defaults, name, None) if kwargs.get(name) is None else kwargs[name]
            for name in ("use_cache", "cache_implementation")
        )
        if cache is None and use_cache is not False and implementation is None:
            cache = GrowingCache(self.config)
        if cache is not None:
            kwargs |= cache_argument(cache)
        return super().generate(inputs, generation_config, **kwargs)


def stretching_limit(config: PretrainedConfig) -> int | None:
    """Return the longest text for which each token's keys do not depend on its length, so that a cache can be shared.

    Args:
        config: The language model's configuration.

    Returns:
        Number of tokens; None if there is no limit.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) not in STRETCHING_ROPE_TYPES:
        return None
    name = "original_max_position_embeddings"
    limits = (rope.get(name), getattr(config, name, None), config.max_position_embeddings)
    return min(limit for limit in limits if limit)


def _holds(buffer: torch.Tensor, states: torch.Tensor, total: int) -> bool:
    """Say whether `total` tokens like `states` `(batch, kv_heads, seq, head_dim)` can be written to `buffer`."""
    shape = (*states.shape[:2], buffer.shape[2], states.shape[3])
    is_same_kind = (buffer.dtype, buffer.device) == (states.dtype, states.device)
    return buffer.shape == shape and total <= shape[2] and is_same_kind


def _enlarged(states: torch.Tensor, capacity: int) -> torch.Tensor:
    """Copy `(batch, kv_heads, length, head_dim)` to the front of a tensor with `capacity` in place of `length`."""
    batch, kv_heads, length, head_dim = states.shape
    with torch.inference_mode(False):  # what inference mode makes cannot be written outside it
        buffer = states.new_zeros(batch, kv_heads, capacity, head_dim)
    buffer[:, :, :length] = states
    return buffer
