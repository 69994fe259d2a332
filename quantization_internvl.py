"""8 and 4 bits: the short way to ask for them, and what stays in 16 bits unless the caller says otherwise."""

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# What stays in 16 bits unless the caller lists other modules: 4 bits make nonsense of the vision encoder, and the
# projector and the output head (under its names in InternLM2 and in Transformers' models) are small.
UNQUANTIZED = ("vision_model", "mlp1", "language_model.output", "language_model.lm_head")
# Under which names Transformers' quantization configs have such a list, None where the caller said nothing.
UNQUANTIZED_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert")
# Weights of the language model's layers that quantization is for: all but a router, which is small and decides.
LAYER_WEIGHT = re.compile(r"\.layers\.\d+\.(?!.*\b(gate|router)\.weight$)")


def bitsandbytes_config(
    load_in_8bit: bool, load_in_4bit: bool, dtype: torch.dtype | str | None = None
) -> BitsAndBytesConfig:
    """Return what the short form `load_in_8bit=True` or `load_in_4bit=True` means.

    Args:
        load_in_8bit: Whether 8 bits are asked for.
        load_in_4bit: Whether 4 bits are asked for.
        dtype: The model's, in which 4 bits compute; None and "auto" mean bfloat16.

    Returns:
        The config.
    """
    return BitsAndBytesConfig(
        load_in_8bit=load_in_8bit,
        load_in_4bit=load_in_4bit,
        # Transformers' default computes in float32, whatever the model's dtype.
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype in (None, "auto") else dtype,
    )


def sparing_config(quantization_config: Any) -> Any:
    """Return a copy of a quantization config that spares `UNQUANTIZED`, unless it names what to spare itself.

    Args:
        quantization_config: A config object of Transformers, or one as a dict.

    Returns:
        The copy, an object. A kind of config that can spare nothing is reported in the log.
    """
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = copy.deepcopy(quantization_config)
    if not any(hasattr(quantization_config, name) for name in UNQUANTIZED_FIELDS):
        logger.warning(
            f"{type(quantization_config).__name__} has none of {UNQUANTIZED_FIELDS}, so the vision encoder may be "
            "quantized too, which 4 bits make nonsense of. Prefer BitsAndBytesConfig or TorchAoConfig."
        )
    for name in UNQUANTIZED_FIELDS:
        if getattr(quantization_config, name, ()) is None:
            setattr(quantization_config, name, list(UNQUANTIZED))
    return quantization_config


def report_unquantized(model: nn.Module) -> None:
    """Report in the log which matrices of the language model's layers quantization has left as they were.

    Experts that a release of Transformers fuses into one tensor for each layer are not reached by bitsandbytes, though
    they are most of a model with experts.

    Args:
        model: A quantized model with `language_model`.
    """
    spared = getattr(getattr(model.config, "quantization_config", None), "llm_int8_skip_modules", None) or ()
    left = {
        name: parameter
        for name, parameter in model.language_model.named_parameters()
        if parameter.ndim > 1
        and parameter.is_floating_point()
        and type(parameter) is nn.Parameter
        and LAYER_WEIGHT.search(name)
        and not f"language_model.{name}".startswith(tuple(spared))
    }
    if left:
        kinds = sorted({name.rpartition(".layers.")[2].partition(".")[2] for name in left})
        gigabytes = sum(parameter.nbytes for parameter in left.values()) / 1e9
        dtype = str(next(iter(left.values())).dtype).removeprefix("torch.")
        logger.warning(
            f"Quantization leaves {len(left)} weights of the language model's layers in {dtype}, {gigabytes:.2f} GB: "
            f"{', '.join(kinds)}. This kind of quantization does not reach them in this release of Transformers: plan "
            "memory for them."
        )
