"""Configuration of InternVL-Chat: a vision config, a language config, and how the two are joined.

Reads every key of the published config.json and writes them back, so that engines keep reading the folder.
"""

import copy
import json
import os
from collections.abc import Iterable
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.utils import cached_file

from .configuration_intern_vit import InternVisionConfig
from .configuration_internlm2 import InternLM2Config
from .llm_config_internvl import add_published_names, read_llm_config
from .prompt_format_internvl import IMAGE_CONTEXT_TOKEN, PROMPT_FORMATS


# The published tokenizers end with nine tokens: <img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box>.
IMAGE_TOKEN_FROM_END = 7
# Where tokenizers say the ids of tokens, the smallest file first.
TOKENIZER_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")
# The classes of this package, which a published config.json names only in part. The model's class is AutoModel's: a
# reward model names another one there.
MODEL_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
PARTS = {
    "AutoImageProcessor": "image_processing_internvl.InternVLImageProcessor",
    "AutoProcessor": "processing_internvl.InternVLProcessor",
}
# Arguments of `from_pretrained` that say where on the Hub a file is.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
PIXEL_SHUFFLE_VERSIONS = ("v1", "v2")


class InternVLChatConfig(PretrainedConfig):
    """Composes an `InternVisionConfig` and a language config (InternLM2, or any causal model Transformers knows).

    Args:
        vision_config: The vision encoder, as a dict or config; None means InternViT-6B.
        llm_config: The language model, as a dict with `model_type` or config; None means InternLM2-20B.
        select_layer: Which state of the vision encoder is projected: -1 the last layer's output, 0 the embeddings.
        force_image_size: Side of a tile, in pixels; None means the vision config's.
        downsample_ratio: 1/n, where pixel shuffle turns n×n patches into one image token; 0.5 in every release.
        ps_version: Pixel shuffle `"v2"`, or `"v1"`, which transposes the grid (checkpoints before V1.5).
        template: Name of the prompt format, see `prompt_format_internvl.py`.
        system_message: System text; None means the one that the template was trained with.
        image_token_id: Id of `<IMG_CONTEXT>`. If None, `from_pretrained` reads it from the tokenizer's files beside
            config.json. Without such files it is guessed as the seventh from the end of the vocabulary, which is wrong
            if the vocabulary is padded: the guess is never saved, and images in a prompt with another id are an error.
        stop_token_id: Id of the token that ends an answer in the prompt format, where `generate` stops too;
            `from_pretrained` reads it as it reads `image_token_id`.
        vision_batch_size: Most tiles that the vision encoder takes at once outside training; None means all. It bounds
            memory for any number of tiles.
        dynamic_image_size: Whether images are cut into several tiles.
        use_thumbnail: Whether the whole image follows its tiles as one more tile.
        min_dynamic_patch: Fewest tiles of an image (the published name says patch).
        max_dynamic_patch: Most tiles of an image, thumbnail not counted.
        pad2square: Whether images are padded to a square before anything else (no release does).
        use_backbone_lora: Kept for engines; adapters are added with PEFT.
        use_llm_lora: Kept for engines; adapters are added with PEFT.
        **kwargs: Anything else a published config.json holds; kept and saved again.

    Raises:
        ValueError: If `llm_config` names no model type, `downsample_ratio` is not one over a whole number, or
            `ps_version` is unknown.
    """

    model_type = "internvl_chat"
    is_composition = True
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict[str, Any] | PretrainedConfig | None = None,
        llm_config: dict[str, Any] | PretrainedConfig | None = None,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        ps_version: str = "v2",
        template: str = "internlm2-chat",
        system_message: str | None = None,
        image_token_id: int | None = None,
        stop_token_id: int | None = None,
        vision_batch_size: int | None = 8,
        dynamic_image_size: bool = True,
        use_thumbnail: bool = True,
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 12,
        pad2square: bool = False,
        use_backbone_lora: int = 0,
        use_llm_lora: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _vision_config(vision_config)
        # Some engines and converters write the language config under Transformers' name for it.
        text_config = kwargs.pop("text_config", None)
        self.llm_config = _llm_config(text_config if llm_config is None else llm_config)
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        if ps_version not in PIXEL_SHUFFLE_VERSIONS:
            raise ValueError(
                f"ps_version is {ps_version!r}; known are {', '.join(map(repr, PIXEL_SHUFFLE_VERSIONS))}."
            )
        self.ps_version = ps_version
        self.template = template
        self.system_message = system_message
        self.image_token_id = image_token_id
        self.stop_token_id = stop_token_id
        self.vision_batch_size = vision_batch_size
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.pad2square = pad2square
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        _ = self.downsample_factor  # a wrong ratio is reported where it was written
        if "AutoConfig" in (auto_map := kwargs.get("auto_map") or {}):
            kwargs["auto_map"] = _whole_auto_map(auto_map)
        kwargs.setdefault("tie_word_embeddings", self.llm_config.tie_word_embeddings)
        super().__init__(**kwargs)
        if self.image_token_id is None:
            self.image_token_id = self._guessed_image_token_id = self.llm_config.vocab_size - IMAGE_TOKEN_FROM_END

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json, and ids of tokens from the tokenizer's files beside it; Transformers calls this."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        config, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        style = PROMPT_FORMATS.get(config.get("template", "internlm2-chat"))
        tokens = {"image_token_id": IMAGE_CONTEXT_TOKEN} | ({"stop_token_id": style.stop} if style else {})
        tokens = {name: token for name, token in tokens.items() if config.get(name) is None}
        if config and tokens:
            ids = _published_ids(pretrained_model_name_or_path, hub, tokens.values())
            config |= {name: ids[token] for name, token in tokens.items() if token in ids}
        return config, rest

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save config.json, see Transformers; its `auto_map` names the code that is saved beside it.

        Transformers changes only the entries of the classes that save themselves. Where code came from a repository of
        its own, the same weights would run the saved code under one Auto class and that repository's under another.
        """
        auto_map = getattr(self, "auto_map", None)
        if auto_map:
            self.auto_map = {name: _beside(reference, save_directory) for name, reference in auto_map.items()}
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            if auto_map:
                self.auto_map = auto_map

    @property
    def downsample_factor(self) -> int:
        """Side of the square of patches that becomes one image token."""
        factor = round(1 / self.downsample_ratio) if self.downsample_ratio else 0
        if factor < 1 or abs(factor * self.downsample_ratio - 1) > 1e-6:
            raise ValueError(f"downsample_ratio is {self.downsample_ratio}; expected 1/n for a whole n, such as 0.5.")
        return factor

    @property
    def tile_size(self) -> int:
        """Side of a tile, in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def text_config(self) -> PretrainedConfig:
        """The language config, under the name that Transformers and some engines look for."""
        return self.llm_config

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """Return the language config, whichever end Transformers asks for."""
        return self.llm_config

    def to_dict(self) -> dict[str, Any]:
        """Return every field; the language model's also under their published names, for engines."""
        output = super().to_dict()
        if output.pop("_guessed_image_token_id", None) == self.image_token_id:
            output["image_token_id"] = None
        add_published_names(self.llm_config, output["llm_config"])
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what config.json holds: both parts in full, for engines have other defaults than ours."""
        output = self.to_dict()
        return super().to_diff_dict() | {name: output[name] for name in self.sub_configs}


def _published_ids(source: str | os.PathLike, hub: dict[str, Any], tokens: Iterable[str]) -> dict[str, int]:
    """Look for added tokens in the tokenizer's files of a folder or Hub repository; return the ids that they name."""
    missing, found = set(tokens), {}
    for file in TOKENIZER_FILES:
        path = missing and cached_file(
            source,
            file,
            **hub,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path:
            with open(path, encoding="utf-8") as opened:
                ids = _added_ids(file, json.load(opened))
            found |= {token: ids[token] for token in missing & ids.keys()}
            missing -= ids.keys()
    return found


def _added_ids(file: str, content: dict[str, Any]) -> dict[str, int]:
    """Return the added tokens of a tokenizer's file with their ids."""
    if file == "added_tokens.json":
        return content
    if file == "tokenizer.json":
        return {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    return {token["content"]: int(index) for index, token in content.get("added_tokens_decoder", {}).items()}


def _whole_auto_map(auto_map: dict[str, Any]) -> dict[str, Any]:
    """Add the package's other classes to those that a published config names, from where the config's class is."""
    repository, dashes, _ = str(auto_map["AutoConfig"]).rpartition("--")
    model = auto_map.get("AutoModel", f"{repository}{dashes}modeling_internvl_chat.InternVLChatModel")
    parts = {name: repository + dashes + target for name, target in PARTS.items()}
    return dict.fromkeys(MODEL_CLASSES, model) | parts | auto_map


def _beside(reference: Any, folder: str | os.PathLike) -> Any:
    """Return where `auto_map` finds a class: in its file in the folder if that is there, else where it came from."""
    if not isinstance(reference, str):
        return reference and [_beside(one, folder) for one in reference]
    name = reference.rpartition("--")[2]
    return name if os.path.isfile(os.path.join(folder, name.partition(".")[0] + ".py")) else reference


def _vision_config(config: dict[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
    return config if isinstance(config, PretrainedConfig) else InternVisionConfig(**(config or {}))


def _llm_config(config: dict[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    if config is None:
        return InternLM2Config(rope_scaling={"type": "dynamic", "factor": 3.0})
    config = copy.deepcopy(config)
    # Published files say "flash_attention_2" here, which would demand flash-attn of everybody who loads them.
    # The backend is chosen by `attn_implementation` in `from_pretrained`.
    config.pop("attn_implementation", None)
    model_type = config.get("model_type")
    if model_type is None:
        raise ValueError(
            f"llm_config has no model_type (architectures: {config.get('architectures')}). "
            "Add the language model's type, for example 'internlm2', 'llama', 'phi3' or 'qwen2'."
        )
    if model_type == InternLM2Config.model_type:
        return InternLM2Config(**{name: value for name, value in config.items() if name != "model_type"})
    return read_llm_config(config)
