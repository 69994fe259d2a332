"""InternViT, the vision encoder of InternVL (arXiv 2404.16821, section 3.1).

Parameter names are the published checkpoint's. Shape legend: `tiles` in the batch, `height`/`width` in pixels,
`rows`/`columns` of the patch grid, `seq` = 1 + rows·columns (class token first), `hidden` the encoder's width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .compat_internvl import attention_function
from .configuration_intern_vit import InternVisionConfig


class InternRMSNorm(nn.Module):
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
        # Rounded before the weight is applied, as when the weights were trained.
        return self.weight * hidden_states.to(dtype)


NORMS: dict[str, type[nn.Module]] = {"rms_norm": InternRMSNorm, "layer_norm": nn.LayerNorm}


class InternVisionEmbeddings(nn.Module):
    """Tiles to patch embeddings with a class token in front and learned positions."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.grid_size = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.randn(1, 1 + self.grid_size**2, config.hidden_size))

    def interpolated_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Return position embeddings for a patch grid, `(1, 1 + rows * columns, hidden)`, resized bicubically."""
        positions = self.position_embedding
        if (rows, columns) == (self.grid_size, self.grid_size):
            return positions
        grid = positions[:, 1:].float()
        grid = grid.reshape(1, self.grid_size, self.grid_size, -1).permute(0, 3, 1, 2)  # (1, hidden, grid, grid)
        grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        grid = grid.flatten(2).transpose(1, 2)  # (1, rows * columns, hidden)
        return torch.cat([positions[:, :1], grid.to(positions.dtype)], dim=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed tiles.

        Args:
            pixel_values: Normalised tiles `(tiles, channels, height, width)`, any floating dtype.

        Returns:
            Embeddings `(tiles, seq, hidden)` in the dtype of the weights.
        """
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(pixel_values.to(dtype))  # (tiles, hidden, rows, columns)
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)  # (tiles, rows * columns, hidden)
        class_token = self.class_embedding.to(dtype).expand(patches.shape[0], -1, -1)  # (tiles, 1, hidden)
        return torch.cat([class_token, patches], dim=1) + self.interpolated_positions(rows, columns).to(dtype)


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
    """Attend in plain PyTorch; every patch sees every patch.

    Args:
        module: The attention module (for its training flag).
        query: `(tiles, heads, seq, head_dim)`; key and value alike.
        key: See `query`.
        value: See `query`.
        attention_mask: Always None here; part of Transformers' attention interface.
        scaling: Factor on the scores.
        dropout: Dropout on the weights, in training.
        **kwargs: Other entries of the interface, unused.

    Returns:
        The output `(tiles, seq, heads, head_dim)` and the weights `(tiles, heads, seq, seq)`.
    """
    # The softmax stays in the dtype of the weights, as the published weights were trained.
    weights = ((query * scaling) @ key.transpose(-2, -1)).softmax(dim=-1)  # (tiles, heads, seq, seq)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights  # (tiles, seq, heads, head_dim)


class InternAttention(nn.Module):
    """Multi-head self-attention with a fused projection and, in the 6B, norms on queries and keys."""

    is_causal = False

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        # The norms span the whole width, before the split into heads: so the 6B was trained.
        self.q_norm, self.k_norm = (
            InternRMSNorm(config.hidden_size, eps=config.layer_norm_eps) if config.qk_normalization else nn.Identity()
            for _ in range(2)
        )
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within each tile: `(tiles, seq, hidden)` in and out, and the weights where the backend has them."""
        tiles, seq, hidden = hidden_states.shape
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)  # each (tiles, seq, hidden)
        # (tiles, seq, hidden) -> (tiles, heads, seq, head_dim)
        query, key, value = (
            states.view(tiles, seq, -1, self.head_dim).transpose(1, 2)
            for states in (self.q_norm(query), self.k_norm(key), value)
        )
        attend: Callable = attention_function(self.config._attn_implementation, eager_attention_forward, {})
        output, weights = attend(
            self,
            query * self.scaling,  # before the product, as in training: every backend then rounds alike
            key,
            value,
            attention_mask=None,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=1.0,
        )
        output = self.proj(output.reshape(tiles, seq, hidden))  # (tiles, seq, heads, head_dim) -> (tiles, seq, hidden)
        return self.proj_drop(output), weights


class InternMLP(nn.Module):
    """Two-layer feed-forward block."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the block; the shape stays."""
        return self.fc2(self.act(self.fc1(hidden_states)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a branch for whole tiles and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """Drop each tile's `branch` (tiles, seq, hidden) with probability `rate`."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - self.rate)
        return branch * keep / (1 - self.rate)


class InternVisionEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer whose two branches are scaled by learned vectors (layer scale)."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)
        self.ls1 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transform `(tiles, seq, hidden)`; the attention weights come second, where the backend has them."""
        attended, weights = self.attn(self.norm1(hidden_states))
        hidden_states = hidden_states + self.drop_path(attended * self.ls1)
        del attended  # as large as the states
        hidden_states = hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)) * self.ls2)
        return hidden_states, weights


class InternVisionEncoder(nn.Module):
    """The stack of layers; there is no norm after the last."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            InternVisionEncoderLayer(config, drop_path_rate=config.drop_path_rate * index / last)
            for index in range(config.num_hidden_layers)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        select_layer: int = -1,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Run the layers up to `select_layer`; see `InternVisionModel.forward`."""
        # A state that nobody asked for is not kept beyond the layer that reads it.
        all_states, all_weights = [hidden_states] if output_hidden_states else [], []
        for layer in self.layers[: self.num_layers_until(select_layer)]:
            hidden_states, weights = layer(hidden_states)
            if output_hidden_states:
                all_states.append(hidden_states)
            if output_attentions:
                all_weights.append(weights)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
        )

    def num_layers_until(self, select_layer: int) -> int:
        """Turn an index into the states (0 = embeddings, -1 = after the last layer) into a number of layers."""
        num_states = len(self.layers) + 1
        if not -num_states <= select_layer < num_states:
            raise ValueError(
                f"select_layer is {select_layer}, but the vision encoder has {num_states} states: "
                f"choose from {-num_states} to {num_states - 1}."
            )
        return select_layer % num_states


class InternVisionPreTrainedModel(PreTrainedModel):
    """What loading, saving and initialising InternViT need."""

    config_class = InternVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEmbeddings", "InternVisionEncoderLayer"]
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
        if isinstance(module, InternVisionEmbeddings):
            nn.init.normal_(module.class_embedding, std=self.config.initializer_range)
            nn.init.normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, InternVisionEncoderLayer):
            nn.init.constant_(module.ls1, self.config.initializer_factor)
            nn.init.constant_(module.ls2, self.config.initializer_factor)
        elif isinstance(module, InternRMSNorm):
            nn.init.ones_(module.weight)


class InternVisionModel(InternVisionPreTrainedModel):
    """InternViT: tiles in, one state per patch (and class token) out."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding."""
        return self.embeddings.patch_embedding

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        select_layer: int = -1,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode tiles.

        Args:
            pixel_values: Normalised tiles `(tiles, channels, height, width)`; sides are multiples of `patch_size`.
                A size other than the config's `image_size` gets interpolated positions.
            select_layer: Index into the states: 0 the embeddings, -1 after the last layer. Later layers do not run.
            output_hidden_states: Whether to return every state that was computed.
            output_attentions: Whether to return attention weights (eager backend).
            **kwargs: Accepted for Transformers' sake, unused.

        Returns:
            `last_hidden_state (tiles, seq, hidden)` at `select_layer`, `pooler_output (tiles, hidden)`, its class
            token, and what was asked for.

        Raises:
            ValueError: If the shape of `pixel_values` does not fit, or `select_layer` does not exist.
            TypeError: If `pixel_values` are not floating point.
        """
        self._check_pixel_values(pixel_values)
        output = self.encoder(
            self.embeddings(pixel_values),
            select_layer=select_layer,
            output_hidden_states=(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=output.last_hidden_state[:, 0],
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        channels, patch_size = self.config.num_channels, self.config.patch_size
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != channels or shape[2] % patch_size or shape[3] % patch_size or 0 in shape[1:]:
            raise ValueError(
                f"pixel_values has shape {shape}; expected (tiles, {channels}, height, width) with sides that are "
                f"multiples of the patch size {patch_size}. The image processor makes such tiles."
            )
        if not pixel_values.is_floating_point():
            raise TypeError(
                f"pixel_values has dtype {pixel_values.dtype}; expected normalised floating point tiles. "
                "Pass images through the image processor instead of raw 0-255 values."
            )


def pixel_shuffle(features: torch.Tensor, factor: int, transposed: bool = False) -> torch.Tensor:
    """Fold each square of `factor` × `factor` patches into the channels (arXiv 2404.16821, section 3.2).

    Args:
        features: Patch features `(tiles, rows, columns, channels)`.
        factor: Side of the square; must divide rows and columns.
        transposed: Whether the resulting grid is transposed, as `ps_version` "v1" does.

    Returns:
        Features `(tiles, rows / factor, columns / factor, channels * factor²)`, the grid transposed if so asked.

    Raises:
        ValueError: If `factor` does not divide the grid.
    """
    tiles, rows, columns, channels = features.shape
    if rows % factor or columns % factor:
        raise ValueError(
            f"A tile has {rows} × {columns} patches, which squares of {factor} × {factor} do not cover. "
            f"Choose a tile size whose sides are multiples of {factor} patches."
        )
    # (tiles, rows / factor, factor, columns / factor, factor, channels)
    features = features.reshape(tiles, rows // factor, factor, columns // factor, factor, channels)
    features = features.permute(0, 1, 3, 2, 4, 5)  # (tiles, rows / factor, columns / factor, factor, factor, channels)
    # Row by row of the square, then its channels: (tiles, rows / factor, columns / factor, channels * factor²)
    features = features.reshape(tiles, rows // factor, columns // factor, channels * factor**2)
    # The transposed grid has (tiles, columns / factor, rows / factor, …); square tiles hide the difference.
    return features.transpose(1, 2).contiguous() if transposed else features
