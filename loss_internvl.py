"""The next-token loss, in chunks of tokens: float32 logits exist for one chunk at a time, in both directions."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


# Tokens whose logits are in float32 at once: 190 MB for a vocabulary of 92553.
CHUNK_TOKENS = 512
IGNORED_LABEL = -100


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
        states: Logits `(batch, seq, vocab)`; or, with a head, what it makes them of, `(batch, seq, hidden)`.
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
        raise ValueError("labels and shift_labels say different things; give one of them.")
    return shift_labels.flatten()


def _next_of_each(values: torch.Tensor, last: float) -> torch.Tensor:
    """Return for each position the value of the next one, `(batch * seq,)`; nothing follows a row's last."""
    return nn.functional.pad(values[:, 1:], (0, 1), value=last).flatten()


def _losses(states: torch.Tensor, labels: torch.Tensor, head: Callable | None) -> torch.Tensor:
    logits = states if head is None else head(states)
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="none")
