"""Published layouts of the family, in full size and in small, with a tokenizer that has the published tokens."""

import copy
import importlib.util
import json
import shutil
from pathlib import Path

import torch
from internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.modeling_internvl_chat import InternVLChatModel


ROOT = Path(__file__).resolve().parent.parent
LAYOUTS_FILE = ROOT.parent / "shared" / "goldens" / "layouts.py"
# The tokenizer of each language model, by its folder of the goldens; all others take the embedded one, a small one
# of InternLM2's kind.
TOKENIZERS = {
    "gpt_oss": "tokenizer_gpt_oss",
    "phi3": "tokenizer_phi3",
    "qwen2": "tokenizer_qwen25",
    "qwen3": "tokenizer_qwen3",
    "qwen3_moe": "tokenizer_qwen3",
}
TOKENIZER_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer.model", "tokenizer_config.json")
# Sizes of a small model; they are multiples of 64, for quantization.
SMALL_LLM = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "num_local_experts": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
SMALL_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "image_size": 56}
PADDED = {151936: 128, 201088: 256}  # vocabularies that are larger than the tokenizer, and of what they are multiples


def published_layouts():
    """Return name → (config, parameters in billions); empty where the goldens are not here."""
    if not LAYOUTS_FILE.is_file():
        return {}
    spec = importlib.util.spec_from_file_location("layouts", LAYOUTS_FILE)
    layouts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layouts)
    # As its own config.json and its weights say; the table has another number.
    layouts.L["InternVL-Chat-V1-2"][0]["llm_config"]["vocab_size"] = 64012
    return layouts.L


def tokenizer_folder(model_type):
    return LAYOUTS_FILE.parent / TOKENIZERS[model_type] if model_type in TOKENIZERS else ROOT / "tiny"


def vocabulary(folder):
    """Return the added tokens of a tokenizer's folder: token → id."""
    said = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    return {token["content"]: int(index) for index, token in said["added_tokens_decoder"].items()}


def small_config(published):
    """Shrink a published config; its keys stay."""
    config = copy.deepcopy(published)
    llm, vision = config["llm_config"], config["vision_config"]
    ids = vocabulary(tokenizer_folder(llm["model_type"]))
    size = max(ids.values()) + 1
    multiple = PADDED.get(llm["vocab_size"], 1)
    heads = llm["num_attention_heads"], llm["num_key_value_heads"]
    llm.update({name: value for name, value in SMALL_LLM.items() if name in llm})
    llm["num_key_value_heads"] = 4 if heads[0] == heads[1] else 2
    llm["vocab_size"] = size if multiple == 1 else (size // multiple + 1) * multiple
    llm["initializer_range"] = 0.2
    end = ids["</s>"] if "</s>" in ids else ids["<|endoftext|>"]
    llm.update({name: end for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in llm})
    if "short_factor" in (llm.get("rope_scaling") or {}):
        llm["rope_scaling"] |= {"short_factor": [1.05] * 8, "long_factor": [1.9] * 8}
    vision.update(SMALL_VISION, num_hidden_layers=2 - min(config["select_layer"], -1), initializer_factor=1.0)
    vision["initializer_range"] = 0.2
    config["force_image_size"] = 56
    return config


def small_layouts():
    """Return name → small config; layouts that differ by their sizes alone are one, under the first name."""
    small = {}
    for name, (published, _) in published_layouts().items():
        small.setdefault(json.dumps(small_config(published), sort_keys=True), name)
    return {name: json.loads(text) for text, name in small.items()}


def write_folder(folder, config):
    """Write a small random model as it would be published: config.json, weights and tokenizer."""
    torch.manual_seed(0)
    model = InternVLChatModel(InternVLChatConfig(**copy.deepcopy(config))).to(torch.bfloat16)
    model.save_pretrained(folder)
    for path in [*folder.glob("*.py"), folder / "generation_config.json"]:
        path.unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    for path in tokenizer_folder(config["llm_config"]["model_type"]).iterdir():
        if path.name in TOKENIZER_FILES or path.name in ("merges.txt", "vocab.json", "tokenizer.json"):
            shutil.copy(path, folder)
    return folder
