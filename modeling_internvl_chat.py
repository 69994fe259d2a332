"""InternVL-Chat: InternViT, pixel shuffle, a two-layer projector and a language model (arXiv 2404.16821, figure 3).

Data flows one way: tiles → image features → token embeddings → logits. Conversations are in `chat_internvl.py`, the
steps of an answer in `generation_internvl.py`.
Shape legend: `tiles` in the batch, `rows`/`columns` of the patch grid, `tile_tokens` image tokens of one tile,
`batch`, `seq`, `hidden` the language model's width, `factor` the side of the square of patches behind an image token.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    Cache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging

from .backbone_internvl import InternVLBackbone
from .cache_internvl import GrowingCacheMixin
from .chat_internvl import ChatMixin, tiles_of_one_conversation
from .configuration_internvl_chat import InternVLChatConfig
from .conversation_internvl import History  # noqa: F401 (Transformers before 5.9 copies only what is imported here)
from .generation_internvl import PictureGenerationMixin, is_further_step
from .image_features_internvl import EncodedImages, check_places
from .loss_internvl import next_token_loss
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM
from .prompt_format_internvl import prompt_format
from .quantization_internvl import bitsandbytes_config, sparing_config
from .scoring_internvl import ScoringMixin
from .session_internvl import ChatSession
from .streaming_internvl import GenerationOptions
from .tiling_internvl import tokens_per_tile


logger = logging.get_logger(__name__)

# Settings of Transformers' language models that change the output head's logits.
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


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
    features = features.reshape(tiles, rows // factor, factor, columns // factor, factor, channels)
    features = features.permute(0, 1, 3, 2, 4, 5)  # (tiles, rows / factor, columns / factor, factor, factor, channels)
    features = features.reshape(tiles, rows // factor, columns // factor, channels * factor**2)
    return features.transpose(1, 2).contiguous() if transposed else features


class InternVLChatModel(
    ChatMixin, ScoringMixin, PreTrainedModel, PictureGenerationMixin, GrowingCacheMixin, GenerationMixin
):
    """The whole model: pictures and text in, text out.

    The attribute names are the checkpoint's (`vision_model`, `mlp1`, `language_model`).

    Args:
        config: The configuration.
        vision_model: A ready vision encoder instead of a new one.
        language_model: A ready language model instead of a new one.
        use_flash_attn: Accepted because official clients pass it, and ignored: the attention backend is
            `attn_implementation` in `from_pretrained`, by default PyTorch's own fused attention.
    """

    config_class = InternVLChatConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEmbeddings", "InternVisionEncoderLayer", "InternLM2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(
        self,
        config: InternVLChatConfig,
        vision_model: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
        use_flash_attn: bool | None = None,
    ) -> None:
        super().__init__(config)
        if use_flash_attn:
            logger.info("use_flash_attn is ignored; pass attn_implementation='flash_attention_2' to from_pretrained.")
        self.vision_model = InternVisionModel(config.vision_config) if vision_model is None else vision_model
        self.language_model = _build_language_model(config.llm_config) if language_model is None else language_model
        width = config.vision_config.hidden_size * config.downsample_factor**2
        hidden_size = config.llm_config.hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        subfolder: str = "",
        quantization_config: Any = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        **kwargs: Any,
    ) -> "InternVLChatModel":
        """Load a model, see Transformers.

        A subfolder of a local folder is opened as a folder: Transformers would prefer the generation_config.json above
        it, whose end token is another model's.

        Args:
            pretrained_model_name_or_path: A folder or a Hub repository.
            *args: See Transformers.
            subfolder: Where in it the weights are.
            quantization_config: How to quantize, as a config object or a dict. Vision encoder, projector and output
                head stay as they are unless it lists the modules to leave alone itself.
            load_in_8bit: Short for a `BitsAndBytesConfig`, as official clients pass it.
            load_in_4bit: See `load_in_8bit`. Computes in `dtype`, bfloat16 if there is none.
            **kwargs: See Transformers.

        Returns:
            The model.

        Raises:
            ValueError: If both a config and its short form are given.
        """
        if load_in_8bit or load_in_4bit:
            if quantization_config is not None:
                asked = "load_in_8bit" if load_in_8bit else "load_in_4bit"
                raise ValueError(
                    f"Got {asked}=True and a quantization_config, which may say something else; pass only the "
                    f"quantization_config, with {asked} in it."
                )
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            quantization_config = bitsandbytes_config(load_in_8bit, load_in_4bit, dtype)
        if quantization_config is not None:
            kwargs["quantization_config"] = sparing_config(quantization_config)
        folder = os.path.join(pretrained_model_name_or_path or "", subfolder)
        if subfolder and os.path.isdir(folder):
            pretrained_model_name_or_path, subfolder = folder, ""
        return super().from_pretrained(pretrained_model_name_or_path, *args, subfolder=subfolder, **kwargs)

    @property
    def num_image_token(self) -> int:
        """Image tokens of a tile of the configured size (256 for 448 pixels)."""
        return self.num_image_tokens_of(self.config.tile_size, self.config.tile_size)

    @property
    def img_context_token_id(self) -> int:
        """Id of `<IMG_CONTEXT>`, under the name that official clients set before they call `generate`."""
        return self.config.image_token_id

    @img_context_token_id.setter
    def img_context_token_id(self, value: int) -> None:
        self.config.image_token_id = value

    @property
    def system_message(self) -> str:
        """The system message in use: the config's, else the one that the template was trained with."""
        message = self.config.system_message
        return prompt_format(self.config.template).system_message if message is None else message

    @system_message.setter
    def system_message(self, value: str | None) -> None:
        self.config.system_message = value

    def num_image_tokens_of(self, height: int, width: int) -> int:
        """Return how many image tokens a tile of `height` × `width` pixels becomes."""
        return tokens_per_tile(height, width, self.config.vision_config.patch_size, self.config.downsample_factor)

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's output head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's output head."""
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the language model without its head."""
        return self.language_model.get_decoder()

    @property
    def base_model(self) -> InternVLBackbone:
        """The model without its output head, for trainers that make the logits themselves."""
        return InternVLBackbone(self)

    @property
    def device(self) -> torch.device:
        """Where inputs go. Under offload the first weights may be on no device at all; the embedding's hook knows."""
        return _input_device(self.get_input_embeddings())

    def get_image_features(self, pixel_values: torch.Tensor, vision_batch_size: int | None = None) -> torch.Tensor:
        """Turn tiles into image tokens, a bounded number of tiles at a time.

        Args:
            pixel_values: Normalised tiles `(tiles, channels, height, width)` on any device, any floating dtype.
            vision_batch_size: Tiles that the vision encoder takes at once; None means `config.vision_batch_size`, and
                all of them in training. Memory grows with it, the result stays.

        Returns:
            Image features `(tiles, tile_tokens, hidden)`.

        Raises:
            ValueError: If the shape does not fit the vision encoder and the pixel shuffle, or `vision_batch_size` is
                below 1.
            TypeError: If `pixel_values` are not floating point.
        """
        if vision_batch_size is None and not self.training:
            vision_batch_size = self.config.vision_batch_size
        if vision_batch_size is not None and vision_batch_size < 1:
            raise ValueError(f"vision_batch_size is {vision_batch_size}; expected at least 1 tile, or None.")
        device = _input_device(self.vision_model)
        chunks = pixel_values.split(vision_batch_size or max(len(pixel_values), 1))
        features = [self._encode_tiles(chunk.to(device)) for chunk in chunks]
        return features[0] if len(features) == 1 else torch.cat(features)

    def _encode_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turn tiles into image tokens all at once."""
        patch_size = self.config.vision_config.patch_size
        states = self.vision_model(pixel_values, select_layer=self.config.select_layer).last_hidden_state
        tiles, _, channels = states.shape
        rows, columns = (side // patch_size for side in pixel_values.shape[-2:])
        patches = states[:, 1:].reshape(tiles, rows, columns, channels)  # the class token is not projected
        features = pixel_shuffle(patches, self.config.downsample_factor, transposed=self.config.ps_version == "v1")
        features = features.flatten(1, 2)  # (tiles, tile_tokens, channels * factor²)
        return self.mlp1(features)  # (tiles, tile_tokens, hidden)

    def extract_feature(self, pixel_values: torch.Tensor, vision_batch_size: int | None = None) -> torch.Tensor:
        """Return `get_image_features(pixel_values)`, under its official name."""
        return self.get_image_features(pixel_values, vision_batch_size)

    @torch.no_grad()
    def encode_images(
        self,
        pixel_values: torch.Tensor,
        num_patches_list: Sequence[int] | torch.Tensor | None = None,
        vision_batch_size: int | None = None,
    ) -> EncodedImages:
        """Encode pictures once, for any number of calls: the result goes wherever `pixel_values` go.

        Args:
            pixel_values: See `get_image_features`.
            num_patches_list: Tiles of each picture; None means that all tiles are one picture.
            vision_batch_size: See `get_image_features`.

        Returns:
            The image features, without autograd, and the tiles of each picture.

        Raises:
            ValueError: As `get_image_features`; also if tiles hold NaN or the counts do not fit.
            TypeError: If `pixel_values` are not floating point.
        """
        num_tiles = tiles_of_one_conversation(pixel_values, num_patches_list)
        if not num_tiles:
            raise ValueError("There are no pictures to encode; give their tiles, as the image processor makes them.")
        _check_finite(pixel_values)
        features = self.get_image_features(pixel_values, vision_batch_size)
        return EncodedImages(features, tuple(num_tiles))

    def start_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | EncodedImages | None = None,
        generation_config: GenerationOptions = None,
        num_patches_list: Sequence[int] | None = None,
        system: str | None = None,
    ) -> ChatSession:
        """Start a conversation that keeps its cache, so that no question reads again what an earlier one has read.

        Args:
            tokenizer: The checkpoint's tokenizer.
            pixel_values: The pictures of the first question, see `ChatSession.show`; None if there are none.
            generation_config: What `generate` takes, for all questions that say nothing else.
            num_patches_list: See `ChatSession.show`.
            system: System message; None means the model's.

        Returns:
            The session. It holds memory on the device until it is closed.

        Raises:
            ValueError: As `encode_images`.
        """
        session = ChatSession(self, tokenizer, generation_config, system)
        if pixel_values is not None:
            session.show(pixel_values, num_patches_list)
        return session

    def embed_inputs(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.Tensor | EncodedImages | None = None,
        image_flags: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        image_token_id: int | None = None,
        vision_batch_size: int | None = None,
    ) -> torch.Tensor:
        """Embed tokens, with image features in the places of the image tokens.

        Args:
            input_ids: Tokens `(batch, seq)`; `config.image_token_id` marks the places, row by row, tile by tile.
            pixel_values: All tiles of the batch in order, see `get_image_features`, or what `encode_images` made of
                them; None for text alone.
            image_flags: 1 for each tile that has places, 0 for a dummy, `(tiles,)` or `(tiles, 1)`; None means all 1.
            visual_features: Ready features `(tiles, tile_tokens, hidden)` instead of `pixel_values`.
            image_token_id: The token that marks a place; None means the config's.
            vision_batch_size: See `get_image_features`.

        Returns:
            Embeddings `(batch, seq, hidden)`.

        Raises:
            ValueError: If the number of places is not the number of image features, or flags and tiles differ.
        """
        if pixel_values is not None and visual_features is not None:
            raise ValueError("Give pixel_values or visual_features, not both: the features would be computed twice.")
        if isinstance(pixel_values, EncodedImages):
            pixel_values, visual_features = None, pixel_values.features
        image_token_id = self.config.image_token_id if image_token_id is None else image_token_id
        if visual_features is not None:
            visual_features = _flagged(visual_features, image_flags)
        elif pixel_values is not None:
            _check_finite(pixel_values)
            tiles = _flagged(pixel_values, image_flags)
            visual_features = self.get_image_features(tiles, vision_batch_size) if len(tiles) else None
        input_ids = input_ids.to(self.device)
        inputs_embeds = self.get_input_embeddings()(input_ids)
        is_image = (input_ids == image_token_id).to(inputs_embeds.device)  # (batch, seq)
        num_places = int(is_image.sum())
        num_features = 0 if visual_features is None else visual_features.shape[:-1].numel()
        check_places(num_places, num_features, image_token_id)
        if num_features:
            return inputs_embeds.masked_scatter(is_image.unsqueeze(-1), visual_features.to(inputs_embeds))
        if pixel_values is not None and self.training:
            # Dummy tiles alone: they keep the vision encoder in the graph, so that no other process waits for it.
            return inputs_embeds + 0.0 * self.get_image_features(pixel_values, vision_batch_size).sum().to(
                inputs_embeds
            )
        return inputs_embeds

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | EncodedImages | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        image_flags: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        loss_weight: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        vision_batch_size: int | None = None,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position. The order of the first arguments is the official one.

        Args:
            pixel_values: See `embed_inputs`; None for text alone.
            input_ids: See `embed_inputs`; or give `inputs_embeds`.
            attention_mask: 1 for tokens, 0 for padding, `(batch, kv_seq)`.
            position_ids: Positions `(batch, seq)`; by default they count on from the cache.
            image_flags: See `embed_inputs`.
            past_key_values: Cache of earlier tokens.
            labels: Tokens to learn `(batch, seq)`, not shifted; -100 is ignored.
            use_cache: Whether to return a cache.
            inputs_embeds: Ready embeddings `(batch, seq, hidden)` instead of `input_ids` and pictures.
            visual_features: See `embed_inputs`.
            loss_weight: Weight of each label `(batch, seq)`; the loss is then their weighted mean.
            logits_to_keep: How many last positions get logits (0: all), or the positions themselves.
            vision_batch_size: See `get_image_features`.
            skip_logits: Return the loss alone: logits then exist for a few tokens at a time, which saves most of the
                memory of a long training step. By default they are returned, for trainers that look at them.
            **kwargs: Passed to the language model (`output_hidden_states`, `output_attentions`, …).

        Returns:
            `loss` if labels are given, `logits (batch, kept, vocab)`, the cache, and what was asked for.

        Raises:
            ValueError: If text and pictures do not fit, or not exactly one of ids and embeddings is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        has_pictures = pixel_values is not None or visual_features is not None
        if inputs_embeds is None and not has_pictures and is_further_step(input_ids, past_key_values):
            # A step of a generation, which may well say the image token itself: pictures came before.
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif inputs_embeds is None:
            inputs_embeds = self.embed_inputs(
                input_ids, pixel_values, image_flags, visual_features, vision_batch_size=vision_batch_size
            )
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        head = self._plain_head(labels) if skip_logits else None
        language_model = self.language_model
        if skip_logits:
            language_model = language_model.get_decoder()
        else:
            kwargs["logits_to_keep"] = logits_to_keep
        outputs = language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        logits, loss = (None, None) if skip_logits else (outputs.logits, None)
        if labels is not None:
            states = outputs.last_hidden_state if skip_logits else logits
            loss = next_token_loss(states, labels, head, num_items_in_batch, loss_weight)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _plain_head(self, labels: torch.LongTensor | None) -> nn.Module:
        """Return the output head, where logits are what it says and nothing else, and a loss is wanted."""
        if labels is None:
            raise ValueError("skip_logits is set, but there are no labels; nothing would be computed. Pass labels.")
        config = self.config.llm_config
        scaled = [name for name in SCALED_LOGITS if getattr(config, name, None) not in (None, 1.0)]
        if scaled:
            raise ValueError(
                f"skip_logits needs logits that come straight from the output head, but llm_config sets {scaled}."
            )
        return self.get_output_embeddings()


def _build_language_model(config: PretrainedConfig) -> PreTrainedModel:
    if config.model_type == InternLM2ForCausalLM.config_class.model_type:
        return InternLM2ForCausalLM(config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"llm_config has model_type {config.model_type!r}, for which this Transformers has no language model."
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def _flagged(tiles: torch.Tensor, image_flags: torch.Tensor | None) -> torch.Tensor:
    """Return the tiles, or their features, that are flagged."""
    if image_flags is None:
        return tiles
    image_flags = image_flags.flatten()
    if len(image_flags) != len(tiles):
        raise ValueError(f"There are {len(image_flags)} image_flags for {len(tiles)} tiles; give one each.")
    return tiles[(image_flags == 1).to(tiles.device)]


def _check_finite(pixel_values: torch.Tensor) -> None:
    # The extremes pass NaN on, and need no memory beside the pixels.
    if pixel_values.numel() and not torch.isfinite(torch.stack(pixel_values.aminmax())).all():
        raise ValueError("pixel_values holds NaN or infinite values; check the picture and its preprocessing.")


def _input_device(module: nn.Module) -> torch.device:
    """Return where a module computes; under CPU or disk offload its weights are elsewhere, and its hook knows."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device
