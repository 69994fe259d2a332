"""The cache of keys and values with room to grow: a decoding step writes its token and copies nothing else."""

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


# Tokens that fit into a layer before it is copied again: 1/256 of a copy each, and 25 MB for the 2B in 16 bits.
SPARE_TOKENS = 256
# RoPE types under which the length of a text changes the angles of all its tokens, once it is beyond a limit.
STRETCHING_ROPE_TYPES = ("dynamic", "longrope", "su")


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, the beginnings of two larger tensors.

    Transformers' own layer is copied whole by every token. Everything else is Transformers': an operation that
    replaces `keys` and `values`, such as reordering beams, is noticed by the next update, which makes new room.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rooms: tuple[torch.Tensor, ...] = ()  # of keys and of values, (batch, kv_heads, capacity, head_dim)
        self._written: tuple[torch.Tensor, ...] = ()  # the beginnings of the rooms that hold tokens
        # All layers of the cache, in one list that they share until the first of them gets tokens. On a CPU all get
        # their rooms then: made one by one, among a prompt's short-lived tensors, they leave memory full of gaps.
        self._together: list[GrowingLayer] = []

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
            All keys and values, `(batch, kv_heads, kv_seq, head_dim)`, with strides that step over the spare room.
        """
        if torch.is_grad_enabled():  # autograd may need what it saw; nothing is written over it
            self._rooms = self._written = ()
            self._together.clear()
            return super().update(key_states, value_states, *args, **kwargs)
        nothing = key_states[:, :, :0], value_states[:, :, :0]
        if not self.is_initialized:
            super().update(*nothing, *args, **kwargs)  # Transformers notes dtype and device
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if not self._has_room(key_states, value_states, total):
            kept = (self.keys, self.values) if length else nothing
            layers = self._together if length == 0 and key_states.device.type == "cpu" else []
            for layer in layers or [self]:
                layer._make_room(*kept, total + SPARE_TOKENS)
            self._together.clear()
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, length:total] = states
        self._written = tuple(room[:, :, :total] for room in self._rooms)
        self.keys, self.values = self._written
        return self._written

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Remove the last tokens, as Transformers' `DynamicLayer.crop` does; their room is used again."""
        in_rooms = self._is_in_rooms()
        super().crop(*args, **kwargs)
        if in_rooms:
            self._written = (self.keys, self.values)

    def _has_room(self, key_states: torch.Tensor, value_states: torch.Tensor, total: int) -> bool:
        """Say whether new tokens can be written behind those that are there, to make so many."""
        if self.get_seq_length():
            return self._is_in_rooms() and self._rooms[0].shape[-2] >= total
        pairs = zip(self._rooms, (key_states, value_states), strict=False)
        return bool(self._rooms) and all(_is_for(room, states, total) for room, states in pairs)

    def _make_room(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        self._rooms = tuple(_enlarged(states, capacity) for states in (keys, values))

    def _is_in_rooms(self) -> bool:
        """Say whether keys and values are what the last update left, and not what others put in their place."""
        return bool(self._rooms) and self.keys is self._written[0] and self.values is self._written[1]


def let_grow(cache: DynamicCache) -> DynamicCache:
    """Give an empty cache's ordinary layers room to grow; windows and other kinds stay what they are.

    Args:
        cache: The cache, changed in place.

    Returns:
        The cache.
    """
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    together = [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]
    for layer in together:
        layer._together = together
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


class GrowingCacheMixin:
    """Lets the cache grow that `generate` makes by default; a caller's own and other implementations are respected."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        given = model_kwargs.get("past_key_values")
        result = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        # An offloaded cache travels whole at every step, and would leave its room behind.
        if given is None and type(cache) is DynamicCache and not cache.offloading:
            let_grow(cache)
        return result


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


def _is_for(room: torch.Tensor, states: torch.Tensor, total: int) -> bool:
    """Say whether so many tokens like `states` `(batch, kv_heads, seq, head_dim)` can be written to `room`."""
    shape = (*states.shape[:2], room.shape[2], states.shape[3])
    return room.shape == shape and total <= shape[2] and (room.dtype, room.device) == (states.dtype, states.device)


def _enlarged(states: torch.Tensor, capacity: int) -> torch.Tensor:
    """Copy `(batch, kv_heads, length, head_dim)` to the beginning of a tensor with `capacity` in place of `length`."""
    batch, kv_heads, length, head_dim = states.shape
    with torch.inference_mode(False):  # what inference mode makes cannot be written outside it
        room = states.new_empty(batch, kv_heads, capacity, head_dim)
    room[:, :, :length] = states
    return room
