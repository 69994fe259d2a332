"""Chats, sessions and abandoned streams leave nothing behind: no memory, no cache, no thread."""

import gc
import threading

import pytest
import torch
from internvl_chat.cache_internvl import GrowingCache
from internvl_chat.image_features_internvl import EncodedImages, PromptFeatures
from internvl_chat.session_internvl import ChatSession
from strange import seeded, text


SHORT = {"max_new_tokens": 2, "do_sample": False}
LEFT_BEHIND = (ChatSession, EncodedImages, PromptFeatures, GrowingCache)


@pytest.fixture(scope="module")
def model(golden_model):
    return golden_model("c01_v15_26b")


def alive():
    """How much of what a conversation makes is still there: objects, bytes of tensors, threads."""
    gc.collect()
    objects = gc.get_objects()
    found = [one for one in objects if type(one) in LEFT_BEHIND]
    tensors = sum(one.numel() * one.element_size() for one in objects if type(one) is torch.Tensor)
    return len(found), tensors, threading.active_count()


def chats(model, tokenizer, count, seed):
    tiles = torch.zeros(1, 3, 112, 112)
    for number in range(count):
        rng = seeded("chat", seed, number)
        model.chat(tokenizer, tiles if number % 2 else None, text(rng).replace("<image>", "") or "a", SHORT)


def sessions(model, tokenizer, count, seed):
    for number in range(count):
        rng = seeded("session", seed, number)
        session = model.start_chat(tokenizer, torch.zeros(1, 3, 112, 112), SHORT)
        for _ in range(2):
            session.chat(text(rng).replace("<image>", "") or "a")
        if number % 2:  # the others are forgotten without a word
            session.close()


def abandoned(model, tokenizer, count, seed):
    for number in range(count):
        stream = model.chat_stream(tokenizer, None, f"{seed} {number}", {**SHORT, "max_new_tokens": 50})
        next(stream, None)
        if number % 2:
            stream.close()
        del stream


def run(model, tokenizer, count, seed=0):
    for what in (chats, sessions, abandoned):
        what(model, tokenizer, 2, seed)  # what is made once
        before = alive()
        what(model, tokenizer, count, seed)
        for _ in range(100):  # a thread ends at its next token
            if threading.active_count() <= before[2]:
                break
            threading.Event().wait(0.1)
        assert alive() == before, what.__name__


def test_nothing_is_left_behind(model, tokenizer):
    run(model, tokenizer, 3)


@pytest.mark.slow
def test_nothing_is_left_behind_by_many(model, tokenizer):
    for seed, (what, count) in enumerate(((chats, 2000), (sessions, 500), (abandoned, 200))):
        what(model, tokenizer, 5, seed)
        before = alive()
        what(model, tokenizer, count, seed)
        threading.Event().wait(2)
        assert alive() == before, what.__name__
