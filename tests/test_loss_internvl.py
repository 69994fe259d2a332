"""The chunked loss is the loss, and so are its gradients."""

import pytest
import torch
from internvl_chat import loss_internvl
from internvl_chat.loss_internvl import next_token_loss
from torch import nn
from torch.testing import assert_close


@pytest.fixture
def case():
    """A head, states of 2 rows of 11 tokens, and labels of which some are ignored."""
    torch.manual_seed(0)
    head, states = nn.Linear(6, 13, bias=False), torch.randn(2, 11, 6, requires_grad=True)
    labels = torch.randint(13, (2, 11))
    labels[0, 3:6] = -100
    return head, states, labels


def plain_loss(logits, labels, **kwargs):
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), **kwargs)


@pytest.mark.parametrize("chunk", [1, 4, 7, 22, 512])
@pytest.mark.parametrize("in_the_loss", [False, True])
def test_chunks_are_the_whole(case, monkeypatch, chunk, in_the_loss):
    head, states, labels = case
    monkeypatch.setattr(loss_internvl, "CHUNK_TOKENS", chunk)
    expected = plain_loss(head(states), labels)
    expected_grads = torch.autograd.grad(expected, (states, head.weight))
    loss = next_token_loss(states, labels, head) if in_the_loss else next_token_loss(head(states), labels)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss, (states, head.weight)), expected_grads)


def test_number_of_items_and_weights(case):
    head, states, labels = case
    total = plain_loss(head(states), labels, reduction="sum")
    for count in (40, torch.tensor(40)):
        assert_close(next_token_loss(states, labels, head, num_items_in_batch=count), total / 40)
    weight = torch.rand(2, 11)
    losses = plain_loss(head(states), labels, reduction="none")
    expected = (losses * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()
    assert_close(next_token_loss(states, labels, head, loss_weight=weight), expected)


def test_float32_logits_of_a_chunk_alone(case, monkeypatch):
    """In both directions, and what is kept between them is not in float32."""
    head, states, labels = case
    head.bfloat16()
    monkeypatch.setattr(loss_internvl, "CHUNK_TOKENS", 4)
    sizes, kept = [], []
    cross_entropy = nn.functional.cross_entropy
    monkeypatch.setattr(
        nn.functional,
        "cross_entropy",
        lambda logits, *args, **kwargs: sizes.append(tuple(logits.shape)) or cross_entropy(logits, *args, **kwargs),
    )
    states = states.detach().bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = next_token_loss(states, labels, head)
    assert sizes == [(4, 13)] * 5 + [(2, 13)]
    assert max(kept) < 22 * 13
    loss.backward()
    assert sorted(sizes) == sorted([(4, 13)] * 10 + [(2, 13)] * 2)
    assert loss.dtype == torch.float32


def test_nothing_to_learn(case):
    head, states, labels = case
    assert next_token_loss(states, torch.full_like(labels, -100), head).isnan()
