"""The wall towards Transformers: the only file that knows what a release calls things.

Supported are Transformers 4.57 and all later releases. Other files hold no release number, inspect no signature and
know one name for each thing; the cache is `past_key_values` there. What a new release renames is mended here.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, NamedTuple

import torch
import transformers
from transformers import Cache, GenerationMixin, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import TransformersKwargs


RELEASE = f"Transformers {transformers.__version__}"

# Whether chunked prefill starts at slot 0 even behind a filled cache, and takes padding for part of the prompt.
PREFILL_CHUNKS_IGNORE_CACHE = hasattr(GenerationMixin, "_prefill_chunking")
# Every name that a release has had for the cache: as an argument, as a model input, as a field of outputs.
CACHE_NAMES = ("past_key_values", "cache")
# How `tp_plan` divides an output head whose logits every process needs: the name differs by release.
TP_PLAN_OF_HEAD = LlamaForCausalLM._tp_plan["lm_head"]
# `max_length` of a GenerationConfig that nobody set, in the releases that have a default.
DEFAULT_MAX_LENGTHS = (None, 20)


def _cache_name() -> str:
    """Return the name that this release has for the cache."""
    names = {field.name for field in fields(CausalLMOutputWithPast)}
    found = [name for name in CACHE_NAMES if name in names]
    if len(found) != 1:
        raise ImportError(
            f"{RELEASE} names none of {', '.join(CACHE_NAMES)} in its outputs ({', '.join(sorted(names))}); "
            "this package does not know its name for the cache. Use a supported release or update compat_internvl.py."
        )
    return found[0]


CACHE_NAME = _cache_name()


def pop_cache(arguments: dict[str, Any]) -> Cache | None:
    """Take the cache out of keyword arguments, under any of its names.

    Args:
        arguments: Keyword arguments of `forward` or `generate`, changed in place.

    Returns:
        The cache, None if there is none.

    Raises:
        TypeError: If two names hold different caches, or a name that is not known holds one.
    """
    names = [name for name in CACHE_NAMES if name in arguments and not _is_for_attention(name, arguments[name])]
    given = {name: arguments.pop(name) for name in names}
    caches = [cache for cache in given.values() if cache is not None]
    if any(cache is not caches[0] for cache in caches):
        raise TypeError(f"{' and '.join(given)} hold different caches, and both mean the cache; give one of them.")
    for name, value in arguments.items():
        if isinstance(value, Cache):
            raise TypeError(
                f"{name} holds a {type(value).__name__}, but no argument of that name takes a cache; "
                f"pass it as {CACHE_NAMES[0]} ({RELEASE} says {CACHE_NAME})."
            )
    return caches[0] if caches else None


def _is_for_attention(name: str, value: Any) -> bool:
    """Say whether an argument is the paged cache that continuous batching passes to attention functions up to 5.23."""
    return name != CACHE_NAME and value is not None and not isinstance(value, (Cache, tuple, list))


def takes_cache(function: Callable) -> Callable:
    """Let a method with the argument `past_key_values` take the cache under every name that a release has for it."""

    @wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (cache := pop_cache(kwargs)) is not None:
            kwargs["past_key_values"] = cache
        return function(self, *args, **kwargs)

    return call


def cache_argument(cache: Cache | None) -> dict[str, Cache | None]:
    """Return the keyword argument by which this release's own models take the cache."""
    return {CACHE_NAME: cache}


def cache_of(output: Any) -> Cache | None:
    """Return the cache in an output of this release's own models."""
    return getattr(output, CACHE_NAME)


def update_cache(
    cache: Cache, key: torch.Tensor, value: torch.Tensor, layer_idx: int, slots: torch.Tensor, kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append keys and values to a layer of the cache, as this release's attention modules do.

    Args:
        cache: The cache.
        key: New keys `(batch, kv_heads, seq, head_dim)`; values alike.
        value: See `key`.
        layer_idx: The layer.
        slots: Where in the cache they go, `(seq,)`; caches of fixed size before 5.3 ask for it.
        kwargs: Keyword arguments of the attention function, which a paged cache changes in place from 5.24 on.

    Returns:
        All keys and values to attend to, `(batch, kv_heads, kv_seq, head_dim)`.
    """
    if CACHE_NAME == "cache":
        return cache.update(key, value, layer_idx, kwargs=kwargs)
    return cache.update(key, value, layer_idx, {"cache_position": slots})


def first_slot(cache: Cache | None, kwargs: dict[str, Any]) -> int | torch.Tensor:
    """Return where in the cache the first new token goes: how many are there.

    Args:
        cache: The cache, None for none.
        kwargs: Keyword arguments of `forward`, in which releases before 5.3 pass the slots as `cache_position`.

    Returns:
        A number, or a tensor on the device for caches of fixed size, so that nothing waits for it.
    """
    slots = kwargs.get("cache_position")
    if slots is not None:
        return slots[0]
    return cache.get_seq_length() if isinstance(cache, Cache) else 0


def token_slots(cache: Cache | None, kwargs: dict[str, Any], inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Return where in the cache new tokens go, `(seq,)`, and take what a release says of it out of `kwargs`.

    Args:
        cache: See `first_slot`.
        kwargs: See `first_slot`; changed in place.
        inputs_embeds: Embeddings of the new tokens, `(batch, seq, hidden)`.

    Returns:
        The slots.
    """
    slots = kwargs.pop("cache_position", None)
    if slots is not None:
        return slots
    return first_slot(cache, kwargs) + torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)


def is_paged(cache: Any) -> bool:
    """Say whether a cache is that of continuous batching, which counts by itself."""
    return cache is not None and not isinstance(cache, Cache)


class BackboneOutput(BaseModelOutputWithPast):
    """Last states, and the cache under every name that a release has for it."""


class CausalLMOutput(CausalLMOutputWithPast):
    """Logits and loss, and the cache under every name that a release has for it."""


class CausalMaskArguments(NamedTuple):
    """What a causal mask is made from, by meaning; the names of Transformers' own arguments differ by release."""

    config: Any
    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor | None
    past_key_values: Cache | None
    position_ids: torch.Tensor
    cache_position: torch.Tensor


# What each argument of Transformers' mask function means, under every name that it has had.
MASK_ARGUMENTS = {name: name for name in CausalMaskArguments._fields} | {
    "input_embeds": "inputs_embeds",
    **dict.fromkeys(CACHE_NAMES, "past_key_values"),
}
# Without these a mask would be wrong in silence.
NEEDED_FOR_MASK = {"config", "inputs_embeds", "attention_mask", "past_key_values"}


def mask_argument_names(mask_function: Callable) -> dict[str, str]:
    """Return the arguments of a mask function, and which field of `CausalMaskArguments` each of them means.

    Raises:
        ImportError: If it requires an argument whose meaning is not known, or has none for what a mask needs.
    """
    parameters = inspect.signature(mask_function).parameters
    names = {name: MASK_ARGUMENTS[name] for name in parameters if name in MASK_ARGUMENTS}
    unknown = [
        name
        for name, parameter in parameters.items()
        if name not in names
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    missing = sorted(NEEDED_FOR_MASK - set(names.values()))
    if unknown or missing:
        raise ImportError(
            f"{RELEASE} makes its causal masks from {', '.join(parameters)}; this package does not know {unknown} "
            f"and misses {missing}. Use a supported release or update compat_internvl.py."
        )
    return names


MASK_ARGUMENT_NAMES = mask_argument_names(create_causal_mask)


def causal_mask(arguments: CausalMaskArguments) -> torch.Tensor | None:
    """Return this release's causal mask for the attention backend of the config; None where it needs none."""
    return create_causal_mask(**{name: getattr(arguments, meaning) for name, meaning in MASK_ARGUMENT_NAMES.items()})


def attention_function(
    name: str, eager: Callable, kwargs: dict[str, Any], in_place_of_sdpa: Callable | None = None
) -> Callable:
    """Return the attention function that is registered under a backend's name.

    Args:
        name: The backend.
        eager: What is used where none is registered.
        kwargs: What the function will be given; up to 5.23 that may be a paged cache, which Transformers' function
            reads.
        in_place_of_sdpa: What is used instead of Transformers' own function for PyTorch's fused attention; a function
            that somebody else registered under its name is respected.

    Returns:
        The function.
    """
    function = ALL_ATTENTION_FUNCTIONS.get(name, eager)
    is_replaced = in_place_of_sdpa is not None and function is sdpa_attention_forward and "cache" not in kwargs
    return in_place_of_sdpa if is_replaced else function


def _offer_all_cache_names(output_class: type) -> None:
    for name in CACHE_NAMES:
        if name != CACHE_NAME:
            setattr(output_class, name, property(lambda output: getattr(output, CACHE_NAME)))


for _output_class in (BackboneOutput, CausalLMOutput):
    _offer_all_cache_names(_output_class)


# Arguments of `forward` that trainers and `generate` pass in some release, and which no signature names.
ARGUMENTS_OF_CALLERS = {
    "cache_position",
    "num_items_in_batch",
    "shift_labels",
    "return_dict",
    "logits_to_keep",
    "is_causal",
    "tokenizer",
}


def argument_names(*functions: Callable) -> frozenset[str]:
    """Return the keyword arguments that functions name, and those that this release passes to every model.

    Args:
        *functions: `forward` of a model, and of the models that it passes keyword arguments on to.

    Returns:
        The names.
    """
    named = {name for function in functions for name in inspect.signature(function).parameters}
    return frozenset(named | TransformersKwargs.__optional_keys__ | ARGUMENTS_OF_CALLERS | set(CACHE_NAMES))


def check_argument_names(kwargs: dict[str, Any], known: frozenset[str]) -> None:
    """Refuse keyword arguments that nothing reads.

    Args:
        kwargs: Keyword arguments of `forward` that it does not name.
        known: See `argument_names`.

    Raises:
        TypeError: If an argument is not known. None is no argument, and continuous batching may pass what it likes to
            the attention function.
    """
    unknown = [name for name, value in kwargs.items() if name not in known and value is not None]
    if unknown and "read_index" not in kwargs:
        raise TypeError(
            f"forward() got {', '.join(unknown)}, which nothing reads; check the spelling or leave it out."
        )


def is_traced() -> bool:
    """Say whether a graph is being recorded for other inputs: no branch may then depend on sizes or values."""
    is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # not in PyTorch 2.6
    return is_exporting() or torch.jit.is_tracing()


def is_sharded(module: torch.nn.Module) -> bool:
    """Say whether each process holds a part of a module's weights (FSDP, ZeRO-3), so that all must run it as often."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    names = {base.__name__ for part in module.modules() for base in type(part).__mro__}
    is_wrapped = not names.isdisjoint({"FSDPModule", "FullyShardedDataParallel"})
    return is_wrapped or any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def input_device(module: torch.nn.Module) -> torch.device:
    """Return where a module computes: under CPU or disk offload its hook's device, not that of its weights."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


class DraftInputsMixin:
    """Lets a model choose which of its inputs an assistant gets in assisted decoding, in `draft_inputs`."""

    def _get_candidate_generator(self, *, assistant_model: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        inputs = self.draft_inputs(assistant_model, model_kwargs)
        return super()._get_candidate_generator(assistant_model=assistant_model, model_kwargs=inputs, **kwargs)
