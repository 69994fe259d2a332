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
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple, logging

from .answer_internvl import Answerer  # noqa: F401 (as `History` below)
from .cache_internvl import GrowingCacheMixin
from .chat_internvl import ChatMixin
from .compat_internvl import (
    CACHE_NAMES,
    CausalLMOutput,
    argument_names,
    cache_argument,
    cache_of,
    check_argument_names,
    first_slot,
    input_device,
    is_sharded,
    is_traced,
    takes_cache,
)
from .configuration_internvl_chat import InternVLChatConfig
from .conversation_internvl import History  # noqa: F401 (Transformers before 5.9 copies only what is imported here)
from .generation_internvl import ImageGenerationMixin, answering, is_further_step
from .image_features_internvl import (
    EncodedImages,
    ImageInput,
    PromptFeatures,
    check_encoded,
    check_image_tokens,
    count_tiles,
    feature_index,
    fingerprint_of,
    flagged,
    insert_features,
)
from .inputs_internvl import check_features, check_tiles, fitting_mask, is_ids, token_ids
from .loading_internvl import add_stop, check_loaded, naming_broken_files
from .loss_internvl import InternVLBackbone, check_loss_arguments, next_token_loss, plain_head
from .modeling_intern_vit import InternVisionModel, pixel_shuffle
from .modeling_internlm2 import InternLM2ForCausalLM
from .prompt_format_internvl import PromptFormat, prompt_format
from .quantization_internvl import bitsandbytes_config, report_unquantized, sparing_config
from .reward_internvl import RewardMixin
from .rope_internvl import forget_longer_calls, mask_beside
from .session_internvl import ChatSession  # noqa: F401 (as `History`)
from .streaming_internvl import stream_answer  # noqa: F401 (as `History`)
from .tiling_internvl import tokens_per_tile


logger = logging.get_logger(__name__)


class InternVLChatModel(ChatMixin, PreTrainedModel, ImageGenerationMixin, GrowingCacheMixin, GenerationMixin):
    """The whole model: images and text in, text out.

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
    _skip_keys_device_placement = list(CACHE_NAMES)
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
        self._argument_names = argument_names(type(self).forward, type(self.language_model).forward)
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
        strict: bool = True,
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
                head are not quantized unless it lists the modules to skip itself.
            load_in_8bit: Short for a `BitsAndBytesConfig`, as official clients pass it.
            load_in_4bit: See `load_in_8bit`. Computes in `dtype`, bfloat16 if there is none.
            strict: Whether missing and unexpected weights are an error; Transformers only logs them.
            **kwargs: See Transformers.

        Returns:
            The model.

        Raises:
            ValueError: If both a config and its short form are given, or the weights do not fit the model.
        """
        if load_in_8bit or load_in_4bit:
            if quantization_config is not None:
                asked = "load_in_8bit" if load_in_8bit else "load_in_4bit"
                raise ValueError(
                    f"Got {asked}=True and a quantization_config, which may contradict it; pass only the "
                    f"quantization_config, with {asked} in it."
                )
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            quantization_config = bitsandbytes_config(load_in_8bit, load_in_4bit, dtype)
        if quantization_config is not None:
            kwargs["quantization_config"] = sparing_config(quantization_config)
        folder = os.path.join(pretrained_model_name_or_path or "", subfolder)
        if subfolder and os.path.isdir(folder):
            pretrained_model_name_or_path, subfolder = folder, ""
        wants_info = kwargs.pop("output_loading_info", False)
        with naming_broken_files(os.path.join(pretrained_model_name_or_path or "", subfolder)):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, subfolder=subfolder, output_loading_info=True, **kwargs
            )
        if strict:
            check_loaded(pretrained_model_name_or_path, info)
        add_stop(model.generation_config, model.config.stop_token_id)
        if getattr(model, "hf_quantizer", None) is not None:
            report_unquantized(model)
        return (model, info) if wants_info else model

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
    def conv_template(self) -> PromptFormat:
        """The prompt format, under the name by which the official card's streaming recipe reads its `sep`."""
        return prompt_format(self.config.template)

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
        """Where inputs go. Under offload the embedding's hook has the device; weights may be on the meta device."""
        return input_device(self.get_input_embeddings())

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_batch_size: int | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> torch.Tensor | BaseModelOutputWithPooling:
        """Turn tiles into image tokens, a bounded number of tiles at a time.

        Args:
            pixel_values: Normalised tiles `(tiles, channels, height, width)` on any device, any floating dtype.
            vision_batch_size: Tiles that the vision encoder takes at once; None means `config.vision_batch_size`, and
                all of them in training. Memory grows with it; the result is the same.
            return_dict: Whether to return an output object, as Transformers' own models do; all tiles are then encoded
                at once. None means so if states or attention weights are asked for.
            output_hidden_states: Whether the output holds every state of the vision encoder.
            output_attentions: Whether the output holds its attention weights (eager backend).

        Returns:
            Image features `(tiles, tile_tokens, hidden)`; with `return_dict` an output that has them as
            `pooler_output`, and the states of the vision encoder as `last_hidden_state` `(tiles, seq, channels)`.

        Raises:
            ValueError: If the shape does not fit the vision encoder and the pixel shuffle, or `vision_batch_size` is
                below 1.
            TypeError: If `pixel_values` are not floating point.
        """
        if vision_batch_size is None and not self.training:
            vision_batch_size = self.config.vision_batch_size
        if vision_batch_size is not None and (vision_batch_size is True or vision_batch_size < 1):
            raise ValueError(f"vision_batch_size is {vision_batch_size}; expected at least 1 tile, or None.")
        if return_dict or (return_dict is None and (output_hidden_states or output_attentions)):
            output = self._vision_output(pixel_values, output_hidden_states, output_attentions)
            output.pooler_output = self._project(output.last_hidden_state, *pixel_values.shape[-2:])
            return output
        if output_hidden_states or output_attentions:
            raise ValueError("return_dict=False, but states or attentions are asked for; features hold neither.")
        is_whole = vision_batch_size is None or is_traced() or is_sharded(self.vision_model)
        features = [
            self._project(self._vision_output(tiles).last_hidden_state, *tiles.shape[-2:])
            for tiles in ([pixel_values] if is_whole else pixel_values.split(vision_batch_size))
        ]
        return features[0] if len(features) == 1 else torch.cat(features)

    def _vision_output(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Run the vision encoder on tiles `(tiles, channels, height, width)`, up to the layer that is projected."""
        return self.vision_model(
            pixel_values.to(input_device(self.vision_model)),
            select_layer=self.config.select_layer,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )

    def _project(self, states: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Turn the states `(tiles, seq, channels)` of tiles of `height` × `width` pixels into image tokens."""
        patch_size = self.config.vision_config.patch_size
        tiles, _, channels = states.shape
        # The class token is not projected: (tiles, rows, columns, channels)
        patches = states[:, 1:].reshape(tiles, height // patch_size, width // patch_size, channels)
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
        """Encode images once, for any number of calls: the result goes wherever `pixel_values` go.

        Args:
            pixel_values: See `get_image_features`.
            num_patches_list: Tiles of each image; None means that all tiles are one image.
            vision_batch_size: See `get_image_features`.

        Returns:
            The image features, without autograd, and the tiles of each image.

        Raises:
            ValueError: As `get_image_features`; also if tiles hold NaN or the counts do not fit.
            TypeError: If `pixel_values` are not floating point.
        """
        num_tiles = count_tiles(pixel_values, num_patches_list)
        if not num_tiles:
            raise ValueError("There are no images to encode; give their tiles, as the image processor returns them.")
        check_tiles(pixel_values)
        with answering(self):
            features = self.get_image_features(pixel_values, vision_batch_size)
        return EncodedImages(features, tuple(num_tiles), fingerprint_of(self.config, self.dtype))

    def check_encoded(self, images: EncodedImages) -> None:
        """Make sure that encoded images are this model's.

        Raises:
            ValueError: If they are another's.
        """
        hidden, tile_tokens = self.config.llm_config.hidden_size, self.num_image_token
        check_encoded(images, fingerprint_of(self.config, self.dtype), hidden, tile_tokens)

    def image_rows(
        self,
        pixel_values: ImageInput | None = None,
        image_flags: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        vision_batch_size: int | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Encode the images of a batch, given in any form.

        Args:
            pixel_values: See `embed_inputs`.
            image_flags: See `embed_inputs`.
            visual_features: See `embed_inputs`.
            vision_batch_size: See `get_image_features`.

        Returns:
            The features of all image tokens in order, `(features, hidden)`, None if there are none. Then a scalar 0
            that depends on the vision encoder, None if it need not: where there are no tiles for text but other
            processes may have some, the vision encoder runs on a dummy tile, so that all of them do the same.

        Raises:
            ValueError: If flags and tiles differ, flags have no tiles, tiles hold NaN, or images are given twice.
        """
        if pixel_values is not None and visual_features is not None:
            raise ValueError("Give pixel_values or visual_features, not both: the features would be computed twice.")
        ready = self._ready_features(pixel_values, visual_features)
        if ready is not None:
            rows = flagged(ready, image_flags).flatten(0, -2)  # (features, hidden)
            return rows if len(rows) else None, None
        if image_flags is not None and pixel_values is None:
            raise ValueError(
                "image_flags are given without pixel_values; flags say which of the tiles are in the text."
            )
        dummy = pixel_values if self.training else None
        if pixel_values is not None:
            if not is_traced():
                check_tiles(pixel_values)
            tiles = flagged(pixel_values, image_flags)
            if len(tiles):
                return self.get_image_features(tiles, vision_batch_size).flatten(0, 1), None  # (features, hidden)
        if dummy is None and is_sharded(self.vision_model):
            size, config = self.config.tile_size, self.config.vision_config
            dummy = torch.zeros(1, config.num_channels, size, size, device=input_device(self.vision_model))
        if dummy is None:
            return None, None
        return None, 0.0 * self.get_image_features(dummy, vision_batch_size).sum()

    def _ready_features(
        self, pixel_values: torch.Tensor | EncodedImages | None, visual_features: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the features of images that are encoded already, None if they are not."""
        if isinstance(pixel_values, EncodedImages):
            self.check_encoded(pixel_values)
            return pixel_values.features
        if visual_features is not None and not is_traced():
            check_features(visual_features, self.config.llm_config.hidden_size)
        return visual_features

    def embed_inputs(
        self,
        input_ids: torch.LongTensor | None,
        pixel_values: ImageInput | None = None,
        image_flags: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        image_token_id: int | None = None,
        vision_batch_size: int | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed tokens, with image features instead of the word embeddings of image tokens.

        Args:
            input_ids: Tokens `(batch, seq)`; those with the id `config.image_token_id` stand for the features, row by
                row, tile by tile. None if `inputs_embeds` are given.
            pixel_values: All tiles of the batch in order, see `get_image_features`, or what `encode_images` returned;
                None for text alone.
            image_flags: 1 for each tile that is in the text, 0 for a dummy, `(tiles,)` or `(tiles, 1)`; None means all
                are 1.
            visual_features: Ready features `(tiles, tile_tokens, hidden)` instead of `pixel_values`.
            image_token_id: Id of the image token; None means the config's.
            vision_batch_size: See `get_image_features`.
            inputs_embeds: Embeddings `(batch, seq, hidden)` instead of the tokens' word embeddings. Without
                `input_ids`, image tokens are those whose embedding is the image token's.

        Returns:
            Embeddings `(batch, seq, hidden)`.

        Raises:
            ValueError: If the number of image tokens is not the number of image features, flags and tiles differ, or
                there are neither tokens nor embeddings.
        """
        # The vision encoder goes first, images or not: sharded processes must gather weights in the same order.
        features, zero = self.image_rows(pixel_values, image_flags, visual_features, vision_batch_size)
        image_token_id = self.config.image_token_id if image_token_id is None else image_token_id
        inputs_embeds, is_image = self._words(input_ids, inputs_embeds, image_token_id)
        if not is_traced():
            check_image_tokens(int(is_image.sum()), 0 if features is None else len(features), image_token_id)
        if features is not None:
            return insert_features(inputs_embeds, feature_index(is_image), features)
        return inputs_embeds if zero is None else inputs_embeds + zero.to(inputs_embeds)

    def _words(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None, image_token_id: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return word embeddings `(batch, seq, hidden)`, and which of the tokens are image tokens `(batch, seq)`."""
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Neither input_ids nor inputs_embeds are given; give one of them.")
        embedding = self.get_input_embeddings()
        if input_ids is not None:
            if not is_traced():
                input_ids = token_ids(input_ids, getattr(embedding, "num_embeddings", None))
            input_ids = input_ids.to(self.device)
            is_image = input_ids == image_token_id
            inputs_embeds = embedding(input_ids) if inputs_embeds is None else inputs_embeds.to(self.device)
        else:
            image_embed = embedding(torch.tensor([image_token_id], device=self.device)).to(
                inputs_embeds
            )  # (1, hidden)
            is_image = (inputs_embeds == image_embed).all(dim=-1)
        if not is_image.numel():
            raise ValueError(f"There are no tokens, but input of shape {tuple(is_image.shape)}; give at least one.")
        if is_image.shape != inputs_embeds.shape[:2]:
            raise ValueError(
                f"input_ids are {tuple(is_image.shape)} and inputs_embeds {tuple(inputs_embeds.shape)}; expected the "
                "same (batch, seq) for both."
            )
        return inputs_embeds, is_image.to(inputs_embeds.device)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        pixel_values: ImageInput | None = None,
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
        prompt_features: PromptFeatures | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Predict the next token at every position. The order of the first arguments is the official one.

        Args:
            pixel_values: See `embed_inputs`; None for text alone. Integers `(batch, seq)` as the first argument are
                `input_ids`: pixels are floating point.
            input_ids: See `embed_inputs`; or give `inputs_embeds`.
            attention_mask: 1 for tokens, 0 for padding, `(batch, kv_seq)`.
            position_ids: Positions `(batch, seq)`; by default they count on from the cache. They may be fractional,
                see `rope_internvl.fractional_positions`.
            image_flags: See `embed_inputs`.
            past_key_values: Cache of earlier tokens; `cache` means the same.
            labels: Tokens to learn `(batch, seq)`, not shifted; -100 is ignored.
            use_cache: Whether to return a cache.
            inputs_embeds: Ready embeddings `(batch, seq, hidden)` instead of `input_ids`; images are put into them.
                `input_ids` beside them and images say where.
            visual_features: See `embed_inputs`.
            loss_weight: Weight of each label `(batch, seq)`; the loss is then their weighted mean.
            logits_to_keep: How many last positions get logits (0: all), or the positions themselves.
            vision_batch_size: See `get_image_features`.
            skip_logits: Return the loss alone: logits then exist for a few tokens at a time, which saves most of the
                memory of a long training step. By default they are returned, for trainers that look at them.
            prompt_features: The images of a prompt, in a step of `generate`, which passes them.
            **kwargs: `shift_labels`: the token to learn at each position `(batch, seq)`, already shifted, as context
                parallelism passes it, since a shard of a sequence cannot shift over its border. Everything else is
                passed to the language model (`output_hidden_states`, `output_attentions`, …).

        Returns:
            `loss` if labels are given, `logits (batch, kept, vocab)`, the cache, and what was asked for.

        Raises:
            TypeError: If an argument is misspelt.
            ValueError: If text and images do not fit, or arguments contradict each other.
        """
        if is_ids(pixel_values):
            if input_ids is not None:
                raise ValueError("pixel_values are integers beside input_ids; expected tiles of floating point.")
            pixel_values, input_ids = None, pixel_values
        check_argument_names(kwargs, self._argument_names)
        images = {
            "pixel_values": pixel_values,
            "image_flags": image_flags,
            "visual_features": visual_features,
            "vision_batch_size": vision_batch_size,
        }
        slot = first_slot(past_key_values, kwargs)
        if isinstance(input_ids, (list, tuple)) or getattr(input_ids, "ndim", 2) != 2:
            input_ids = token_ids(input_ids, None)
        inputs_embeds = self.embeds_of_step(input_ids, inputs_embeds, images, past_key_values, prompt_features, slot)
        if isinstance(slot, int) and not is_traced():
            length = inputs_embeds.shape[1] + slot
            attention_mask = fitting_mask(attention_mask, len(inputs_embeds), length, takes_any=True)
        if prompt_features is not None and prompt_features.positions is not None:
            position_ids = prompt_features.positions_at(slot, *inputs_embeds.shape[:2])
        if position_ids is not None and attention_mask is None:
            attention_mask = mask_beside(position_ids, slot)
        # Not an argument by name: Transformers' trainer takes each argument called so for one that batches must have.
        shift_labels = kwargs.pop("shift_labels", None)
        has_labels = labels is not None or shift_labels is not None
        check_loss_arguments(has_labels, loss_weight, logits_to_keep, skip_logits)
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        # Without logits, the head is asked first whether they would be its output and nothing else.
        head = plain_head(self.config.llm_config, self.get_output_embeddings()) if skip_logits else None
        outputs = self._read(
            None if skip_logits else logits_to_keep,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **cache_argument(past_key_values),
            **kwargs,
        )
        logits, loss = (None if skip_logits else outputs.logits), None
        if has_labels:
            states = outputs.last_hidden_state if skip_logits else logits
            loss = next_token_loss(states, labels, head, num_items_in_batch, loss_weight, shift_labels)
        return CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **cache_argument(cache_of(outputs)),
        )

    def _read(self, logits_to_keep: int | torch.Tensor | None, **inputs: Any) -> Any:
        """Run the language model; `logits_to_keep` is None for its last states without logits."""
        if logits_to_keep is None:
            return self.language_model.get_decoder()(**inputs)
        return self.language_model(logits_to_keep=logits_to_keep, **inputs)

    def embeds_of_step(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        images: dict[str, Any],
        cache: Cache | None = None,
        prompt_features: PromptFeatures | None = None,
        slot: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Return the embeddings of the tokens that a call of `forward` reads.

        Args:
            input_ids: See `forward`.
            inputs_embeds: See `forward`.
            images: The arguments of `image_rows`.
            cache: Cache of earlier tokens.
            prompt_features: See `forward`.
            slot: Where in the whole sequence the first token stands.

        Returns:
            Embeddings `(batch, seq, hidden)`.

        Raises:
            ValueError: If text and images do not fit, or it is not clear what to read.
        """
        has_images = images["pixel_values"] is not None or images["visual_features"] is not None
        if prompt_features is not None and inputs_embeds is None:
            return prompt_features.embed(self.get_input_embeddings()(input_ids), slot)
        if prompt_features is not None:
            # Prompt tuning embeds the prompt's ids itself, and puts embeddings of its own before them.
            if prompt_features.positions is not None:
                raise ValueError(
                    "V2PE is asked for with prompt tuning, whose tokens have no positions in it; leave out one."
                )
            return prompt_features.embed_found(*self._words(None, inputs_embeds, self.config.image_token_id))
        if input_ids is not None and inputs_embeds is not None and not has_images:
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None and not has_images and is_further_step(input_ids, cache):
            # A step of a generation, in which the model may generate the image token itself: images came before.
            return self.get_input_embeddings()(input_ids)
        if input_ids is None and inputs_embeds is not None and not has_images:
            return inputs_embeds
        return self.embed_inputs(input_ids, inputs_embeds=inputs_embeds, **images)


class InternVLRewardModel(RewardMixin, InternVLChatModel):
    """VisualPRM: the same model, which scores the steps of answers; its config.json names this class for AutoModel."""


def _build_language_model(config: PretrainedConfig) -> PreTrainedModel:
    if config.model_type == InternLM2ForCausalLM.config_class.model_type:
        return InternLM2ForCausalLM(config)
    known = [base for base in type(config).__mro__ if base in MODEL_FOR_CAUSAL_LM_MAPPING]
    if not known:
        raise ValueError(
            f"llm_config has model_type {config.model_type!r}, for which this Transformers has no language model."
        )
    language_model = MODEL_FOR_CAUSAL_LM_MAPPING[known[0]](config)
    forget_longer_calls(language_model)
    return language_model
