"""The wall against callers: ids, masks, tiles, features and options of a call, checked before anything is computed.

What is unambiguous is accepted: ids as a list, or one row of them. Everything else is refused in a sentence that says
what was found and what was expected. Nothing here runs in a traced graph.

Shape legend: `tiles` in the batch, `tile_tokens` image tokens of one tile, `batch`, `seq`, `hidden` the language
model's width.
"""

from collections.abc import Iterable
from numbers import Integral
from reprlib import repr as shortened
from typing import Any

import torch


TILES = "(tiles, 3, height, width) of floating point, as the image processor makes them"
FEATURES = "(tiles, tile_tokens, hidden) of floating point, as get_image_features makes them"
IDS = "(batch, seq) of token ids"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
AUDIO_KWARGS = ("audio", "audios")
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_dense(value: Any, name: str, expected: str) -> None:
    """Make sure that a value is a tensor that can be computed with.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is sparse, complex, quantized or on the meta device.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected a tensor {expected}.")
    kind = "on the meta device, without values" if value.is_meta else "quantized" if value.is_quantized else ""
    kind = f"sparse ({value.layout})" if value.layout != torch.strided else "complex" if value.is_complex() else kind
    if kind:
        raise ValueError(f"{name} is a tensor that is {kind}; expected a dense real one {expected}: convert it.")


def check_tiles(pixel_values: Any) -> None:
    """Make sure that a value is tiles of finite numbers; how many there are, others check.

    Raises:
        TypeError, ValueError: If it is something else.
    """
    _check_floats(pixel_values, "pixel_values", TILES, (4,), "the image and its preprocessing")


def check_features(features: Any, hidden: int | None = None, name: str = "visual_features") -> None:
    """Make sure that a value is image features of finite numbers.

    Args:
        features: The value, `(tiles, tile_tokens, hidden)` or `(image tokens, hidden)`.
        hidden: Width of the language model; None where no model is known yet.
        name: What error messages call it.

    Raises:
        TypeError, ValueError: If it is something else.
    """
    _check_floats(features, name, FEATURES, (2, 3), "the images and the dtype that they were encoded with")
    if hidden is not None and features.shape[-1] != hidden:
        raise ValueError(
            f"{name} are {features.shape[-1]} wide; expected {hidden}, the width of this model's embeddings: encode "
            "the images with this model."
        )


def _check_floats(value: Any, name: str, expected: str, ndims: tuple[int, ...], cause: str) -> None:
    check_dense(value, name, expected)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} is of dtype {value.dtype}; expected {expected}: float32, bfloat16 or float16.")
    if value.ndim not in ndims:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}.")
    # The extremes pass NaN on, and need no memory beside the values.
    if value.numel() and not torch.isfinite(torch.stack(value.detach().aminmax())).all():
        raise ValueError(f"{name} holds NaN or infinite values; check {cause}.")


def is_ids(value: Any) -> bool:
    """Whether a value is meant as token ids: pixels are floating point in four dimensions."""
    if isinstance(value, torch.Tensor):
        return value.ndim in (1, 2) and value.dtype in INTEGERS
    return isinstance(value, (list, tuple))


def token_ids(value: Any, vocab_size: int | None, name: str = "input_ids") -> torch.Tensor:
    """Return token ids as a tensor `(batch, seq)`.

    Args:
        value: A tensor or a list of rows of the same length, or of a single row.
        vocab_size: How many ids there are; None where it is not known.
        name: What error messages call them.

    Raises:
        TypeError, ValueError: If they are something else, or an id is out of range.
    """
    if isinstance(value, (list, tuple)):
        value = _tensor_of(value, name)
    check_dense(value, name, IDS)
    if value.numel() and value.dtype not in INTEGERS:
        raise TypeError(f"{name} is of dtype {value.dtype}; expected a tensor {IDS}, which are whole numbers.")
    if value.ndim not in (1, 2):
        raise ValueError(f"{name} is {tuple(value.shape)}; expected a tensor {IDS}.")
    value = value if value.ndim == 2 else value[None]  # (batch, seq)
    value = value if value.dtype in (torch.int64, torch.int32) else value.long()
    if vocab_size is not None and value.numel():
        low, high = (int(bound) for bound in value.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} holds the id {low if low < 0 else high}; expected 0 to {vocab_size - 1}: use the "
                "checkpoint's own tokenizer."
            )
    return value


def _tensor_of(rows: Any, name: str) -> torch.Tensor:
    try:
        return torch.tensor(rows, dtype=None if rows else torch.int64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} is a list that is no tensor ({error}); expected rows of the same length: pad them, as the "
            "processor does."
        ) from error


def fitting_mask(attention_mask: Any, batch: int, *lengths: int, takes_any: bool = False) -> Any:
    """Return an attention mask if it fits the tokens.

    Args:
        attention_mask: The mask `(batch, length)` as a tensor or a list; for a single row also `(length,)`.
        batch: Number of rows.
        *lengths: Numbers of tokens that it may be for, cached ones included.
        takes_any: Whether masks as Transformers makes them pass, of four dimensions or no tensors at all.

    Raises:
        TypeError, ValueError: If it does not fit.
    """
    if isinstance(attention_mask, (list, tuple)):
        attention_mask = _tensor_of(attention_mask, "attention_mask")
    if attention_mask is None or (takes_any and getattr(attention_mask, "ndim", 4) == 4):
        return attention_mask
    expected = f"({batch}, {lengths[-1]}), 1 for each token and 0 for padding"
    check_dense(attention_mask, "attention_mask", expected)
    found = tuple(attention_mask.shape)
    if found not in [(batch, length) for length in lengths] and (batch != 1 or found not in [(n,) for n in lengths]):
        raise ValueError(f"attention_mask has shape {found}; expected {expected}.")
    return attention_mask if attention_mask.ndim == 2 else attention_mask[None]  # (batch, length)


def check_return_tensors(value: Any) -> None:
    """Refuse kinds of tensors that nothing here makes.

    Raises:
        ValueError: If it is not "pt", "np" or None.
    """
    if value not in ("pt", "np", None):
        raise ValueError(f"return_tensors is {value!r}, expected 'pt' for tensors, 'np' for arrays, or None.")


def refuse_audio(kwargs: dict[str, Any]) -> None:
    """Take audio out of the arguments of a call, as callers for many kinds of models give it empty.

    Raises:
        ValueError: If there is any.
    """
    for name in AUDIO_KWARGS:
        given = kwargs.pop(name, None)
        if _has_any(given):
            raise ValueError(
                f"{name} is given, and InternVL reads no audio; expected images and videos: leave it out."
            )


def _has_any(value: Any) -> bool:
    """Whether a value is neither None nor a list of nothing else."""
    return any(map(_has_any, value)) if isinstance(value, (list, tuple)) else value is not None


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_padding(padding_side: Any, pad_to_multiple_of: Any) -> None:
    """Refuse a side, or a multiple, to which nothing can be padded.

    Raises:
        ValueError: If one is something else.
    """
    if padding_side not in (None, "left", "right"):
        raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'.")
    if pad_to_multiple_of is not None and (not is_whole(pad_to_multiple_of) or pad_to_multiple_of < 1):
        raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of!r}, expected a whole number of at least 1.")


def check_length(max_length: Any, is_used: bool) -> None:
    """Refuse a length that is no number, or that nothing asks for.

    Raises:
        ValueError: If so.
    """
    if not is_whole(max_length) or max_length < 1:
        raise ValueError(f"max_length is {max_length!r}, expected a whole number of at least 1.")
    if not is_used:
        raise ValueError(f"max_length is {max_length}: say truncation=True or padding='max_length' as well.")


def checked_prompts(text: Any) -> list[str]:
    """Return the prompts of a call.

    Raises:
        ValueError: If there is none, or one is no text.
    """
    prompts = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text]
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(
            f"text is {shortened(text)}, expected a prompt or a list of at least one; images come first, and messages "
            "go to apply_chat_template."
        )
    return prompts


def rows_of_ids(token_ids: Any) -> list[list[int]]:
    """Return token ids `(batch, seq)` or `(seq,)` as a list for each row.

    Raises:
        ValueError: If they are something else.
    """
    if isinstance(token_ids, torch.Tensor):
        check_dense(token_ids, "The token ids", "(batch, seq) or (seq,)")

    def plain(values: Any) -> Any:
        values = values.tolist() if hasattr(values, "tolist") else values
        return [plain(value) for value in values] if isinstance(values, (list, tuple)) else values

    rows = plain(token_ids)
    if isinstance(rows, list) and not any(isinstance(row, list) for row in rows):
        rows = [rows]
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and all(is_whole(token_id) and token_id >= 0 for token_id in row) for row in rows
    ):
        raise ValueError(
            f"The token ids are {shortened(token_ids)}, expected (batch, seq) or (seq,), as generate returns them."
        )
    return rows
