"""What tests of the model share: a tiny one, what it is asked, and how logits are compared with recorded ones."""

import torch
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel
from torch.testing import assert_close


def _rounding():
    """Return how much coarser float32 products are here than where the goldens' tolerances were measured, at least 1.

    Processors without AVX-512 add in another order, with up to three times the error.
    """
    left, right = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(0))
    error = (left @ right - left.double() @ right.double()).abs().max().item()
    return max(1.0, error / 5e-6)


ROUNDING = _rounding()
LOGITS = {"atol": 2e-4 * ROUNDING, "rtol": 0.0}
IMAGE_TOKEN = 93  # of `tiny_config`
TILE_TOKENS = 4
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

TINY_VISION = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "image_size": 56,
    "initializer_factor": 1.0,
    "initializer_range": 0.2,
}
TINY_LLM = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def tiny_config(model_type="internlm2", **kwargs):
    """A model whose tiles of 56 pixels have 4 × 4 patches and become 4 image tokens."""
    return InternVLChatConfig(vision_config=TINY_VISION, llm_config={"model_type": model_type, **TINY_LLM}, **kwargs)


def tiny_model(model_type="internlm2", **kwargs):
    torch.manual_seed(0)
    return InternVLChatModel(tiny_config(model_type, **kwargs)).eval()


def tiles(count, size=56):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def prompt(num_tiles, after=(7, 8, 9)):
    """Ids `(1, seq)` with places for so many tiles."""
    return torch.tensor([[1, 5, *[IMAGE_TOKEN] * TILE_TOKENS * num_tiles, *after]])


def check_logits(logits, tensors, name="logits", **tolerance):
    """Compare with recorded logits; large vocabularies were recorded in part."""
    tolerance = {**LOGITS, **tolerance}
    logits = logits.float()
    if name in tensors:
        assert_close(logits, tensors[name], **tolerance)
        return
    assert_close(logits[..., tensors[f"{name}.cols"]], tensors[f"{name}.at_cols"], **tolerance)
    assert_close(logits.gather(-1, tensors[f"{name}.top5_indices"]), tensors[f"{name}.top5_values"], **tolerance)
    if f"{name}.lse" in tensors:
        assert_close(logits.logsumexp(-1), tensors[f"{name}.lse"], **tolerance)
        assert_close(logits[:, -1], tensors[f"{name}.last"], **tolerance)
