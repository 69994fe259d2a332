"""Language configs of other makers: read under every published spelling, written as engines read them.

What Transformers knows by another name, or not in every release, is in the tables here and nowhere else.
"""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, LlamaConfig, PretrainedConfig


# RoPE types under older names. Transformers 5 renames them too, but only after it has looked for the limit.
ROPE_TYPES = {"su": "longrope"}
# Phi-3 knows three keys in `rope_scaling`, and its limit beside it.
LONGROPE_KEYS = ("short_factor", "long_factor")
LIMIT = "original_max_position_embeddings"


class InternLM3Config(LlamaConfig):
    """InternLM3, a Llama with its own names for biases, for releases of Transformers that do not know it."""

    model_type = "internlm3"
    attribute_map = {"qkv_bias": "attention_bias", "bias": "mlp_bias"}


# Config classes for model types that only newer releases know.
OWN_CONFIGS = {InternLM3Config.model_type: InternLM3Config}


def read_llm_config(config: dict[str, Any]) -> PretrainedConfig:
    """Make the config of a language model that Transformers builds.

    Args:
        config: The published `llm_config`; it stays unchanged.

    Returns:
        The config, of the class that the installed release has for its `model_type`.

    Raises:
        ValueError: If Transformers does not know the `model_type`.
    """
    config = copy.deepcopy(config)
    model_type = config.pop("model_type")
    for name in ("rope_scaling", "rope_parameters"):
        if config.get(name):
            config[name] = {
                key: ROPE_TYPES.get(value, value) if key in ("type", "rope_type") else value
                for key, value in config[name].items()
            }
    if model_type in OWN_CONFIGS and model_type not in CONFIG_MAPPING:
        return OWN_CONFIGS[model_type](**config)
    return AutoConfig.for_model(model_type, **config)


def add_published_names(config: PretrainedConfig, output: dict[str, Any]) -> None:
    """Write what this release keeps under new names also under the published ones, which engines read.

    Args:
        config: The language config.
        output: Its dict, changed in place.
    """
    for published, current in config.attribute_map.items():
        if current in output:
            output.setdefault(published, output[current])
    rope = output.get("rope_parameters") or {}  # Transformers 5's name for both keys
    if "rope_theta" in rope:
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        scaled = scaling.get("rope_type", "default") != "default"
        output |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling if scaled else None}
    scaling = output.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) == "longrope" and hasattr(config, LIMIT):
        output[LIMIT] = getattr(config, LIMIT)
        output["rope_scaling"] = {"type": "longrope"} | {key: scaling[key] for key in LONGROPE_KEYS if key in scaling}
