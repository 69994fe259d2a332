"""What the tester classes share: the package under an importable name, known to the Auto classes, and tiny sizes.

The suites beside this file run inside Transformers' own `tests` package, which `run.py` brings; nothing here is
collected by the repository's own pytest runs.
"""

import os
import sys
import types
from pathlib import Path

import torch
from tests.test_modeling_common import floats_tensor, ids_tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, dynamic_module_utils
from transformers.models.auto import modeling_auto


ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ["PEERS_FOLDER"]  # code and embedded checkpoint in one folder, as on the Hub
package = types.ModuleType("internvl_chat")
package.__path__ = [str(ROOT)]
sys.modules["internvl_chat"] = package

from internvl_chat.configuration_intern_vit import InternVisionConfig  # noqa: E402
from internvl_chat.configuration_internlm2 import InternLM2Config  # noqa: E402
from internvl_chat.configuration_internvl_chat import InternVLChatConfig  # noqa: E402
from internvl_chat.modeling_intern_vit import InternVisionModel  # noqa: E402
from internvl_chat.modeling_internlm2 import InternLM2ForCausalLM, InternLM2Model  # noqa: E402
from internvl_chat.modeling_internvl_chat import InternVLChatModel  # noqa: E402


for config, model in (
    (InternVLChatConfig, InternVLChatModel),
    (InternLM2Config, InternLM2Model),
    (InternVisionConfig, InternVisionModel),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM)
AutoModelForImageTextToText.register(InternVLChatConfig, InternVLChatModel)
# The common tests find out by class names which models take labels.
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[InternLM2Config.model_type] = "InternLM2ForCausalLM"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[InternVLChatConfig.model_type] = "InternVLChatModel"
for config, name in ((InternLM2Config, "InternLM2Model"), (InternVisionConfig, "InternVisionModel")):
    modeling_auto.MODEL_MAPPING_NAMES[config.model_type] = name


def trust() -> None:
    """Answer the question whether the folder's code may run, which the common tests have no argument for."""
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and "resolve_trust_remote_code" in vars(module):
            module.resolve_trust_remote_code = lambda *args, **kwargs: True


trust()
dynamic_module_utils.HF_MODULES_CACHE = os.environ["PEERS_MODULES"]

# Odd sizes on purpose: what is mixed up does not fit.
TEXT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 94,
    "eos_token_id": 95,
    "pad_token_id": 96,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
RMS_NORM = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
LAYER_NORM = {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}
IMAGE_TOKENS = 4  # 28 / 7 = 4 patches a side, halved: 2 x 2 image tokens


class VisionTester:
    """Configures a tiny vision encoder and draws tiles."""

    is_training = True
    batch_size, num_masks, mask_length = 3, 0, 16
    seq_length = 17  # 4 x 4 patches and the class token
    image_size, patch_size, num_channels = 28, 7, 3
    hidden_size, num_hidden_layers, num_attention_heads = (
        VISION[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )

    def __init__(self, parent, config_class, **settings):
        self.parent, self.config_class, self.settings = parent, config_class, VISION | settings

    def get_config(self):
        return self.config_class(**self.settings)

    def prepare_config_and_inputs_for_common(self):
        tiles = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": tiles}


class ImageTextTester:
    """Configures a tiny whole model and draws prompts of one tile each."""

    is_training = True
    # The comparisons of attention backends fill smaller batches with random ids: image tokens without images.
    batch_size = 7
    text_length = 5
    seq_length = text_length + IMAGE_TOKENS
    image_token_id = 1
    num_channels, image_size = 3, VISION["image_size"]

    def __init__(self, parent, config_class, text_name, text, vision, **settings):
        self.parent, self.config_class, self.settings = parent, config_class, settings
        self.parts = {text_name: TEXT | text, "vision_config": VISION | vision}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
            setattr(self, name, self.parts[text_name][name])
        self.pad_token_id, self.eos_token_id = TEXT["pad_token_id"], TEXT["eos_token_id"]

    def get_config(self):
        parts = {name: dict(part) for name, part in self.parts.items()}
        return self.config_class(image_token_id=self.image_token_id, **parts, **self.settings)

    def prepare_config_and_inputs_for_common(self):
        # Words only: no image token, no mark.
        words = 2 + ids_tensor([self.batch_size, self.text_length], TEXT["bos_token_id"] - 2)
        image = torch.full((self.batch_size, IMAGE_TOKENS), self.image_token_id, device=words.device)
        input_ids = torch.cat([image, words], 1)
        tiles = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        inputs = {"pixel_values": tiles, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        return self.get_config(), inputs
