"""Lay this package's code beside the published weights of a model of the family, and check that the folder loads.

Usage: `python -m examples.adopt [--dry-run] [--skip-load] [--device-map MAP] FOLDER` in the repository's root, where
FOLDER holds config.json, the weights and the tokenizer as they were downloaded. Weights and tokenizer stay unchanged.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging


ROOT = Path(__file__).resolve().parent.parent
CLASSES = json.loads((ROOT / "config.json").read_text("utf-8"))["auto_map"]
# Checkpoints of the same names in another form, and what they are.
OTHER_FORMS = {
    "internvl": "in Transformers' own format (the -HF repositories), which its own classes load",
    "internvl_chat_with_qllama": "InternVL-C or -G, another architecture",
}
INDEX = "model.safetensors.index.json"
QUESTION = "What is in the image?"


def adopt(folder: Path, dry_run: bool = False, load: bool = True, device_map: str | None = None) -> list[str]:
    """Copy the code into a folder of published weights and write what the Auto classes miss there.

    Args:
        folder: The folder.
        dry_run: Whether to check and report alone, and change nothing.
        load: Whether to load the result and let it answer a question with one token.
        device_map: Where to load the model to, see `from_pretrained`.

    Returns:
        What was done, or would be, a line for each file.

    Raises:
        ValueError: If the folder cannot work with this code, in one sentence that says why. It is unchanged then.
    """
    config = read_config(folder)
    check_weights(folder, config)
    names = [path.name for path in sorted(ROOT.glob("*.py"))]
    done = [f"{'replaces' if (folder / name).exists() else 'adds'} {name}" for name in names]
    missing = files_to_write(folder)
    done += [f"{'completes' if (folder / name).exists() else 'writes'} {name}" for name in missing]
    if dry_run:
        return done
    for name in names:
        shutil.copyfile(ROOT / name, folder / name)
    published = read_json(folder / "config.json")
    published["auto_map"] = published.get("auto_map", {}) | classes_for(published)
    write_json(folder / "config.json", published)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    for name in missing:
        content = written(name, folder, processor, config)
        (folder / name).write_text(content, "utf-8")
    return [*done, *(check_loading(folder, processor, device_map) if load else [])]


def read_config(folder: Path) -> Any:
    """Read config.json with the package's class.

    Raises:
        ValueError: If it is not a model of the family, or a part of the folder is missing.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json; expected a folder with a published model: download it first, for example "
            "with: hf download OpenGVLab/InternVL3-8B --local-dir FOLDER"
        )
    published = read_json(folder / "config.json")
    model_type = published.get("model_type")
    if model_type != "internvl_chat":
        form = OTHER_FORMS.get(model_type, "no model of this family")
        raise ValueError(
            f"config.json of {folder} has the model type {model_type!r}: {form}; expected 'internvl_chat'."
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ValueError(f"{folder} has no weights; expected *.safetensors or pytorch_model*.bin beside config.json.")
    config = package_class("AutoConfig").from_pretrained(folder)
    model_class = package_class("AutoModelForImageTextToText")
    sys.modules[model_class.__module__].prompt_format(config.template)  # an unknown one is an error
    if hasattr(config, "_guessed_image_token_id"):
        raise ValueError(
            f"No file of {folder} names the id of <IMG_CONTEXT>; expected the checkpoint's own tokenizer, with "
            "tokenizer_config.json, added_tokens.json or tokenizer.json."
        )
    return config


def check_weights(folder: Path, config: Any) -> None:
    """Compare the names of the weights with those of the model, without reading a weight.

    Raises:
        ValueError: If the model misses some, or has no use for some; the likely cause is named.
    """
    found = names_of_weights(folder)
    if not found:  # pickled weights tell their names only when they are loaded
        return
    model_class = package_class("AutoModelForImageTextToText")
    with torch.device("meta"):  # the names alone are asked for
        expected = set(model_class(config).state_dict())
    tied = {"language_model.lm_head.weight"} if config.llm_config.tie_word_embeddings else set()
    check = sys.modules[model_class.__module__].check_loaded
    # Releases of Transformers fuse experts of a layer in their own ways.
    found, expected = ({re.sub(r"\.experts\..*", ".experts", name) for name in names} for names in (found, expected))
    check(folder, {"missing_keys": expected - found - tied, "unexpected_keys": found - expected - tied})


def names_of_weights(folder: Path) -> set[str]:
    """Return the names of the weights in safetensors files."""
    if (folder / INDEX).is_file():
        return set(read_json(folder / INDEX)["weight_map"])
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            names |= set(opened.keys())
    return names


def files_to_write(folder: Path) -> list[str]:
    """Return the names of the files that the Auto classes, or engines, miss in a folder."""
    missing = []
    for name, auto_class in (
        ("preprocessor_config.json", "AutoImageProcessor"),
        ("processor_config.json", "AutoProcessor"),
    ):
        path = folder / name
        if not path.is_file() or auto_class not in read_json(path).get("auto_map", {}):
            missing.append(name)
    tokenizer_config = folder / "tokenizer_config.json"
    has_template = tokenizer_config.is_file() and "chat_template" in read_json(tokenizer_config)
    if not has_template and not (folder / "chat_template.jinja").is_file():
        missing.append("chat_template.jinja")
    return [*missing, "generation_config.json"]


def written(name: str, folder: Path, processor: Any, config: Any) -> str:
    """Return what a missing file of the folder says."""
    if name == "chat_template.jinja":
        return processor.chat_template
    if name == "generation_config.json":
        said = read_json(folder / name) if (folder / name).is_file() else {}
        stops = said.get("eos_token_id", config.llm_config.eos_token_id)
        stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
        ends = [config.stop_token_id] if config.stop_token_id not in (None, *stops) else []
        return as_json(said | {"eos_token_id": [*stops, *ends]})
    content = {"auto_map": {"AutoProcessor": CLASSES["AutoProcessor"]}, "processor_class": "InternVLProcessor"}
    if name == "processor_config.json":
        content |= {"patch_size": processor.patch_size, "downsample_factor": processor.downsample_factor}
        return as_json(content)
    content["auto_map"]["AutoImageProcessor"] = CLASSES["AutoImageProcessor"]
    return as_json(content | {"image_processor_type": "InternVLImageProcessor"} | processor.image_processor.to_dict())


def check_loading(folder: Path, processor: Any, device_map: str | None) -> list[str]:
    """Load the folder as its users do, and let both ways to ask answer with a token.

    Raises:
        ValueError: If the ways to ask do not agree, or as loading says.
    """
    model = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, dtype="auto", device_map=device_map
    ).eval()
    image = Image.new("RGB", (64, 64), "white")
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    ).to(model.device)
    options = {"max_new_tokens": 1, "do_sample": False}
    tokens = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    answer = model.chat_with_logprobs(processor.tokenizer, inputs["pixel_values"], QUESTION, options)
    if tokens[0].tolist() != list(answer.token_ids):
        raise ValueError(
            f"generate() says token {tokens[0].tolist()} and chat() {answer.token_ids}: please report this."
        )
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    return [f"loads: {count:.2f} billion parameters, template {model.config.template}, first token {tokens[0].item()}"]


def package_class(auto_class: str) -> Any:
    """Return a class of the package, from the repository itself."""
    return get_class_from_dynamic_module(CLASSES[auto_class], str(ROOT))


def classes_for(published: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `auto_map` for everything but the tokenizer, which is the checkpoint's own."""
    named = [*published.get("architectures", ()), published.get("auto_map", {}).get("AutoModel", "")]
    is_reward = any(name.endswith("InternVLRewardModel") for name in named)
    return {
        name: target.replace("InternVLChatModel", "InternVLRewardModel") if is_reward else target
        for name, target in CLASSES.items()
        if name != "AutoTokenizer"
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


def as_json(content: dict[str, Any]) -> str:
    """Write JSON as configs are written."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(as_json(content), "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Adopt a folder, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of published weights")
    parser.add_argument("--dry-run", action="store_true", help="check and report alone, change nothing")
    parser.add_argument("--skip-load", action="store_true", help="do not load the model at the end")
    parser.add_argument("--device-map", help="where to load it to, such as auto (default: the CPU)")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        done = adopt(options.folder, options.dry_run, not options.skip_load, options.device_map)
    except (ValueError, OSError) as error:
        print(f"Not adopted: {error}", file=sys.stderr)
        return 1
    print("\n".join(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
