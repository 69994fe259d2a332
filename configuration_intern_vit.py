"""Configuration of InternViT, the vision encoder of InternVL (arXiv 2404.16821, section 3.1).

Holds sizes and switches only; the model is in `modeling_intern_vit.py`.
"""

from typing import Any

from transformers import PretrainedConfig


NORM_TYPES = ("rms_norm", "layer_norm")


class InternVisionConfig(PretrainedConfig):
    """Sizes of an InternViT; the defaults are InternViT-6B-448px-V1-5.

    Args:
        num_channels: Colour channels of a tile.
        patch_size: Side of a patch, in pixels.
        image_size: Side of the tile that the position embedding was trained for, in pixels.
        qkv_bias: Whether the fused query/key/value projection has a bias (InternViT-300M does, 6B does not).
        hidden_size: Width of the encoder.
        num_attention_heads: Attention heads per layer; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layer.
        qk_normalization: Whether queries and keys go through RMSNorm over the whole width (6B does, 300M does not).
        num_hidden_layers: Encoder layers.
        hidden_act: Activation of the feed-forward layer.
        norm_type: `"rms_norm"` (6B) or `"layer_norm"` (300M).
        layer_norm_eps: Epsilon of every norm.
        dropout: Dropout after the attention projection, in training.
        drop_path_rate: Stochastic depth of the last layer, in training; earlier layers rise to it linearly.
        attention_dropout: Dropout on attention weights, in training.
        initializer_range: Standard deviation of freshly made weights.
        initializer_factor: Value of freshly made layer scales.
        **kwargs: Anything else a published config.json holds; kept and saved again.

    Raises:
        ValueError: If `hidden_size` is not a multiple of `num_attention_heads`, or `norm_type` is unknown.
    """

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"
    # How `tp_plan="auto"` divides the weights. Attention stays whole: the 6B's 25 heads do not divide, and the norms
    # of its queries and keys span them all.
    base_model_tp_plan = {"encoder.layers.*.mlp.fc1": "colwise", "encoder.layers.*.mlp.fc2": "rowwise"}

    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 448,
        qkv_bias: bool = False,
        hidden_size: int = 3200,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        qk_normalization: bool = True,
        num_hidden_layers: int = 45,
        hidden_act: str = "gelu",
        norm_type: str = "rms_norm",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_attention_heads})."
            )
        if norm_type not in NORM_TYPES:
            raise ValueError(f"norm_type is {norm_type!r}; InternViT knows {', '.join(map(repr, NORM_TYPES))}.")
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.qkv_bias = qkv_bias
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.qk_normalization = qk_normalization
        self.num_hidden_layers = num_hidden_layers
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        super().__init__(**kwargs)
