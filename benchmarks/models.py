"""The models that are measured: this package's, and Transformers' own InternVL with the same shapes as the peer.

Weights are random, so answers mean nothing; sizes are those of published checkpoints. The peer's language model is
Llama, which has InternLM2's shapes with the fused projection split; Phi-3 of the layout 4b has none here.
"""

import copy
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedModel,
)

from benchmarks.measure import ROOT


OURS, PEER = "this package", "Transformers' InternVL"
WHO = (OURS, PEER)

VISION_300M = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}
# What replaces parts of `config.json`, which is InternVL-Chat-V1-5; what a part leaves out is its class's default.
LAYOUTS: dict[str, dict[str, Any]] = {
    "26b": {},
    "4b": {  # Mini-InternVL-Chat-4B-V1-5
        "vision_config": VISION_300M,
        "llm_config": {
            "model_type": "phi3",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32020,
            "pad_token_id": 0,
        },
    },
    "2b": {  # Mini-InternVL-Chat-2B-V1-5
        "vision_config": VISION_300M,
        "llm_config": {
            "model_type": "internlm2",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
    },
    "tiny": {  # for trying the commands: a tile becomes 4 image tokens
        "force_image_size": 56,
        "vision_config": {
            "image_size": 56,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
        },
        "llm_config": {
            "model_type": "internlm2",
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    },
}


def our_config(layout: str) -> Any:
    """Return this package's configuration of a layout."""
    base = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    config = type(base).from_dict(base.to_dict() | copy.deepcopy(LAYOUTS[layout]))
    config._name_or_path = str(ROOT)  # where the code of `auto_map` is
    return config


def peer_config(layout: str) -> InternVLConfig:
    """Return the peer's configuration of a layout: the same shapes."""
    config = our_config(layout)
    vision, text = config.vision_config, config.llm_config
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            intermediate_size=vision.intermediate_size,
            attention_bias=vision.qkv_bias,
            use_qk_norm=vision.qk_normalization,
            norm_type=vision.norm_type,
            layer_norm_eps=vision.layer_norm_eps,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
        ),
        text_config=LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            max_position_embeddings=text.max_position_embeddings,
            rms_norm_eps=text.rms_norm_eps,
            tie_word_embeddings=False,
        ),
        image_token_id=config.image_token_id,
        image_seq_length=tile_tokens(config),
        downsample_ratio=1 / config.downsample_factor,
        tie_word_embeddings=False,
    )


def tile_tokens(config: Any) -> int:
    """Count the image tokens of a tile, by this package's configuration."""
    return (config.tile_size // config.vision_config.patch_size // config.downsample_factor) ** 2


def build(who: str, layout: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model with random weights.

    Args:
        who: One of `WHO`.
        layout: One of `LAYOUTS`.
        device: Where the weights are made.
        dtype: Of the weights.

    Returns:
        The model, in evaluation mode.
    """
    torch.manual_seed(0)
    with torch.device(device):
        if who == OURS:
            model = AutoModelForImageTextToText.from_config(our_config(layout), trust_remote_code=True, dtype=dtype)
        else:
            model = InternVLForConditionalGeneration._from_config(peer_config(layout), dtype=dtype)
    return model.to(device).eval()


def load_tokenizer() -> Any:
    """Load the embedded checkpoint's tokenizer: how a text is cut into tokens does not matter here."""
    return AutoTokenizer.from_pretrained(ROOT, subfolder="tiny", trust_remote_code=True)


def answer_options(model: PreTrainedModel, tokenizer: Any, new_tokens: int) -> dict[str, Any]:
    """Return generation options for answers that the tokenizer, whose vocabulary is smaller, can decode."""
    unknown = list(range(len(tokenizer), model.config.llm_config.vocab_size))
    return {"max_new_tokens": new_tokens, "do_sample": False, "suppress_tokens": unknown}


def make_inputs(layout: str, num_tiles: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Make a prompt with one picture.

    Args:
        layout: One of `LAYOUTS`.
        num_tiles: Tiles of the picture, thumbnail included.
        device: Where the inputs go.
        dtype: Of the pixels.

    Returns:
        `input_ids` (1, seq), `attention_mask` (1, seq) and `pixel_values` (num_tiles, 3, side, side).
    """
    config = our_config(layout)
    text = torch.arange(100, 150)[None]  # about as long as the system message and a question
    places = torch.full((1, num_tiles * tile_tokens(config)), config.image_token_id)
    input_ids = torch.cat([text, places, text], dim=1).to(device)
    pixels = torch.randn(num_tiles, 3, config.tile_size, config.tile_size, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixels.to(device, dtype),
    }
