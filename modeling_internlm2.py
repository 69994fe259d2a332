"""InternLM2, the language model of InternVL 1.5 (arXiv 2403.17297, as used in arXiv 2404.16821, section 3.1).

Parameter names are the published checkpoint's. Shape legend: `batch`, `seq` new tokens, `kv_seq` cached and new ones,
`heads` query heads, `kv_heads` key/value heads, `group` = heads / kv_heads, `hidden` = heads · head_dim.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple

from .cache_internvl import GrowingCache, GrowingCacheMixin
from .compat_internvl import (
    CACHE_NAMES,
    TP_PLAN_OF_HEAD,
    BackboneOutput,
    CausalLMOutput,
    CausalMaskArguments,
    argument_names,
    attention_function,
    cache_argument,
    cache_of,
    causal_mask,
    check_argument_names,
    is_traced,
    takes_cache,
    token_slots,
    update_cache,
)
from .configuration_internlm2 import InternLM2Config
from .loss_internvl import next_token_loss


# Tokens of a prompt that pass the feed-forward block at once: inside, their states are the widest of all. On a CPU,
# small tensors fit into the gaps that others have left, and for larger ones the process grows.
MLP_TOKENS, MLP_TOKENS_CPU = 2048, 512


class InternLM2RMSNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension; shape and dtype stay."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.float()
        hidden_states = hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * hidden_states.to(dtype)


class InternLM2RotaryEmbedding(nn.Module):
    """Rotary position embedding without state: every call computes its angles from the positions alone.

    There is no buffer that a loader could leave unset, and a long call leaves nothing behind for the next one.
    With dynamic NTK scaling the base grows once the sequence is longer than `max_position_embeddings`. Cached keys
    keep the base of the step that made them, as in the official code, so beyond that length decoding with a cache is
    not the same computation as without.
    """

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute cosines and sines.

        Args:
            hidden_states: Any tensor with the dtype and device wanted.
            position_ids: Positions `(batch, seq)`.

        Returns:
            Cosine and sine, each `(batch, seq, head_dim)`.
        """
        angles = position_ids[..., None].float() * self.inverse_frequencies(position_ids)  # (batch, seq, head_dim / 2)
        if self.config.rope_type == "linear":
            angles = angles / self.config.rope_factor
        angles = torch.cat([angles, angles], dim=-1)  # (batch, seq, head_dim)
        return angles.cos().to(hidden_states.dtype), angles.sin().to(hidden_states.dtype)

    def inverse_frequencies(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return the `head_dim / 2` rotation speeds, in radians per position, for the longest row of the batch."""
        dim = self.config.head_dim
        exponents = torch.arange(0, dim, 2, device=position_ids.device).float() / dim
        base = self.config.rope_theta
        if self.config.rope_type == "dynamic":
            # 1 up to the limit, then growing with the length: no branch on a tensor, so nothing waits for the device.
            length = position_ids.max() + 1
            factor, limit = self.config.rope_factor, self.config.max_position_embeddings
            stretch = (factor * length / limit - (factor - 1)).clamp(min=1.0)
            base = base * stretch ** (dim / (dim - 2))
        return 1.0 / base**exponents


def rotate_half(states: torch.Tensor) -> torch.Tensor:
    """Turn each pair (first half, second half) of the last dimension by 90 degrees."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def apply_rotary_pos_emb(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `states (batch, heads, seq, head_dim)` by `cos` and `sin`, both `(batch, seq, head_dim)`."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (batch, 1, seq, head_dim)
    return states * cos + rotate_half(states) * sin


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain PyTorch, with each key/value head shared by its group of query heads.

    Args:
        module: The attention module (for its group size and training flag).
        query: `(batch, heads, seq, head_dim)`.
        key: `(batch, kv_heads, kv_seq, head_dim)`; value alike.
        value: See `key`.
        attention_mask: Added to the scores, `(batch, 1, seq, kv_seq)`, or None.
        scaling: Factor on the scores.
        dropout: Dropout on the weights, in training.
        **kwargs: Other entries of Transformers' attention interface, unused.

    Returns:
        The output `(batch, seq, heads, head_dim)` and the weights `(batch, heads, seq, kv_seq)`.
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (batch, heads, kv_seq, head_dim)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)  # (batch, heads, kv_seq, head_dim)
    scores = query @ key.transpose(-2, -1) * scaling  # (batch, heads, seq, kv_seq)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights  # (batch, seq, heads, head_dim)


def single_token_sdpa_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from one new token with PyTorch's fused attention, which gets the queries of a group as a sequence.

    Each key and value is then read once, in one product with all queries of its group, and none is repeated.

    Args:
        module: The attention module, unused.
        query: `(batch, heads, 1, head_dim)`.
        key: See `eager_attention_forward`.
        value: See `eager_attention_forward`.
        attention_mask: See `eager_attention_forward`; it may also be boolean, or have all heads in place of 1.
        scaling: See `eager_attention_forward`.
        dropout: See `eager_attention_forward`.
        **kwargs: See `eager_attention_forward`.

    Returns:
        The output `(batch, 1, heads, head_dim)`; there are no weights.
    """
    batch, heads, _, head_dim = query.shape
    kv_heads = key.shape[1]
    query = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)  # the groups in place of seq
    if attention_mask is not None and attention_mask.shape[1] > 1:
        # (batch, kv_heads, groups, kv_seq)
        attention_mask = attention_mask.reshape(-1, kv_heads, heads // kv_heads, key.shape[2])
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )  # (batch, kv_heads, group, head_dim)
    return output.reshape(batch, 1, heads, head_dim), None  # (batch, seq = 1, heads, head_dim)


class InternLM2Attention(nn.Module):
    """Grouped-query attention over one fused projection.

    The rows of `wqkv` are grouped by key/value head: for each, its `group` query heads, then its key, then its value.
    """

    is_causal = True

    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        heads_out = config.num_attention_heads + 2 * config.num_key_value_heads
        self.wqkv = nn.Linear(config.hidden_size, heads_out * self.head_dim, bias=config.bias)
        self.wo = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        slots: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from new tokens `(batch, seq, hidden)` to cached and new ones; see `InternLM2Model.forward`."""
        batch, seq, _ = hidden_states.shape
        # (batch, seq, kv_heads, groups + 2, head_dim): each key-value head has its queries, then its key and value
        states = self.wqkv(hidden_states).view(batch, seq, -1, self.num_key_value_groups + 2, self.head_dim)
        query, key, value = states.split([self.num_key_value_groups, 1, 1], dim=3)
        # each (batch, heads or kv_heads, seq, head_dim)
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in (query, key, value))
        query, key = (apply_rotary_pos_emb(part, *position_embeddings) for part in (query, key))
        if past_key_values is not None:
            key, value = update_cache(past_key_values, key, value, self.layer_idx, slots, kwargs)

        attend: Callable = attention_function(
            self.config._attn_implementation,
            eager_attention_forward,
            kwargs,
            in_place_of_sdpa=single_token_sdpa_forward if seq == 1 else None,
        )
        output, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        output = output.reshape(batch, seq, -1)  # (batch, seq, heads, head_dim) -> (batch, seq, hidden)
        return self.wo(output), weights


class InternLM2MLP(nn.Module):
    """Gated feed-forward block: `w2(act(w1 x) * w3 x)`."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the block; the shape stays."""
        limit = MLP_TOKENS_CPU if hidden_states.device.type == "cpu" else MLP_TOKENS
        if not self._is_divisible(hidden_states) or hidden_states.shape[:-1].numel() <= limit:
            return self._transform(hidden_states)
        # Parts of a tensor with three dimensions would go a slow way through PyTorch if the weights are frozen.
        parts = hidden_states.flatten(0, -2).split(limit)  # (batch * seq, hidden)
        return torch.cat([self._transform(part) for part in parts]).view_as(hidden_states)  # (batch, seq, hidden)

    def _transform(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.w2(self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states))

    def _is_divisible(self, hidden_states: torch.Tensor) -> bool:
        """Say whether parts pay: not if autograd keeps all states, nor if offloaded weights would come for each."""
        is_offloaded = any(weight.device != hidden_states.device for weight in self.w1.parameters())
        return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or is_traced() or is_offloaded)


class InternLM2DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer."""

    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transform `(batch, seq, hidden)`; the attention weights come second, where the backend has them."""
        attended, weights = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        del attended  # as large as the states
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states)), weights


class InternLM2PreTrainedModel(PreTrainedModel):
    """What loading, saving and initialising InternLM2 need."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Let `set_attn_implementation` work; each release of Transformers guesses in its own way whether it does."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InternLM2RMSNorm):
            nn.init.ones_(module.weight)


class InternLM2Model(InternLM2PreTrainedModel):
    """The decoder without its output head."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = InternLM2RotaryEmbedding(config)
        self._argument_names = argument_names(type(self).forward)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.tok_embeddings = value

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Run the decoder.

        Args:
            input_ids: New tokens `(batch, seq)`; or give `inputs_embeds`.
            attention_mask: 1 for tokens, 0 for padding, `(batch, kv_seq)`, or a ready 4-D mask.
            position_ids: Positions `(batch, seq)`; by default they count on from the cache.
            past_key_values: Cache of earlier tokens, filled in place; `cache` means the same.
            inputs_embeds: Embeddings `(batch, seq, hidden)` instead of `input_ids`.
            use_cache: Whether to return a cache; default from the config, never while training with checkpointing.
            output_hidden_states: Whether to return the embeddings and every layer's state (the last one normed).
            output_attentions: Whether to return attention weights (eager backend).
            **kwargs: Passed to the attention backend.

        Returns:
            `last_hidden_state (batch, seq, hidden)`, the cache, and what was asked for.

        Raises:
            ValueError: Unless exactly one of `input_ids` and `inputs_embeds` is given, or if a cache is given in
                training with gradient checkpointing, which would fill it twice.
            TypeError: If `past_key_values` is not a Transformers cache object, or an argument is misspelt.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.tok_embeddings(input_ids)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        check_argument_names(kwargs, self._argument_names)
        past_key_values = self._cache_to_use(past_key_values, use_cache)
        slots = token_slots(past_key_values, kwargs, inputs_embeds)
        if position_ids is None:
            position_ids = slots.unsqueeze(0)  # (1, seq)
        mask = causal_mask(
            CausalMaskArguments(self.config, inputs_embeds, attention_mask, past_key_values, position_ids, slots)
        )

        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        all_states, all_weights = [hidden_states] if output_hidden_states else [], []
        for layer in self.layers:
            hidden_states, weights = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                slots=slots,
                position_ids=position_ids,
                **kwargs,
            )
            if output_hidden_states:
                all_states.append(hidden_states)
            if output_attentions:
                all_weights.append(weights)
        hidden_states = self.norm(hidden_states)
        return BackboneOutput(
            last_hidden_state=hidden_states,
            hidden_states=(*all_states[:-1], hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
            **cache_argument(past_key_values),
        )

    def _cache_to_use(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        if isinstance(past_key_values, (tuple, list)):
            raise TypeError(
                f"past_key_values is a {type(past_key_values).__name__}; expected a Transformers cache object such as "
                "DynamicCache. Tuples of tensors are no longer a cache: pass DynamicCache() and keep the one returned."
            )
        checkpointing = self.training and self.gradient_checkpointing
        if checkpointing and past_key_values is not None and torch.is_grad_enabled():
            raise ValueError(
                "A cache is given in training with gradient checkpointing, whose backward pass would fill it again; "
                "call eval() or gradient_checkpointing_disable() first, or train without a cache."
            )
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is not None or not use_cache or checkpointing:
            return past_key_values
        return DynamicCache(config=self.config) if is_traced() else GrowingCache(self.config)


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GrowingCacheMixin, GenerationMixin):
    """InternLM2 with its output head."""

    # Each process has some rows of the head, and all logits.
    _tp_plan = {"output": TP_PLAN_OF_HEAD}

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.output

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output head."""
        self.output = value

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Predict the next token at every position; arguments not listed are `InternLM2Model.forward`'s.

        Args:
            input_ids: New tokens `(batch, seq)`; or give `inputs_embeds`.
            attention_mask: See `InternLM2Model.forward`.
            position_ids: See `InternLM2Model.forward`.
            past_key_values: See `InternLM2Model.forward`.
            inputs_embeds: See `InternLM2Model.forward`.
            labels: Tokens to learn `(batch, seq)`, not shifted; -100 is ignored.
            use_cache: See `InternLM2Model.forward`.
            logits_to_keep: How many last positions get logits (0: all), or the positions themselves.
            **kwargs: `num_items_in_batch` and `shift_labels`, see `next_token_loss`; the rest is passed to
                `InternLM2Model.forward`.

        Returns:
            `loss` if labels are given, `logits (batch, kept, vocab)`, the cache, and what was asked for.
        """
        num_items_in_batch, shift_labels = (kwargs.pop(name, None) for name in ("num_items_in_batch", "shift_labels"))
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **cache_argument(past_key_values),
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(outputs.last_hidden_state[:, kept])  # (batch, kept, vocab)
        loss = None
        if labels is not None or shift_labels is not None:
            loss = next_token_loss(logits, labels, num_items_in_batch=num_items_in_batch, shift_labels=shift_labels)
        return CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **cache_argument(cache_of(outputs)),
        )
