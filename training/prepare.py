"""Writes everything of the embedded checkpoint but its weights: tokenizer, config and the other data files.

Run it with `python -m training.prepare`.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from examples.fast_tokenizer import TOKENIZERS, write_fast_tokenizer
from training.data import IMAGE_MEAN, IMAGE_STD, load_config
from training.tokenizer import SPECIAL_TOKENS, write_tokenizer


ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tiny"
# Order of the published file, which is not the order of the ids.
ADDITIONAL = ("<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>")
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


def _token(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def model_config(config: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Complete the model's config.json with what follows from the vocabulary.

    Args:
        config: The training configuration.
        vocab_size: Size of the whole vocabulary.

    Returns:
        The content of config.json.
    """
    model = json.loads(json.dumps(config["model"]))
    model["llm_config"]["vocab_size"] = vocab_size
    model["image_token_id"] = vocab_size - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<IMG_CONTEXT>")
    return dict(sorted(model.items()))


def write_data_files(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, the tokenizer, and the settings of generation, image processor and processor.

    Args:
        folder: The checkpoint folder.
        config: The training configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder, config["tokenizer"]["pieces"])
    model = model_config(config, vocab_size)
    _write(folder / "config.json", model)
    special = {token: vocab_size - len(SPECIAL_TOKENS) + index for index, token in enumerate(SPECIAL_TOKENS)}
    _write_tokenizer_files(folder, special)
    write_fast_tokenizer(folder)
    end = special["<|im_end|>"]
    _write(
        folder / "generation_config.json",
        {"bos_token_id": 1, "do_sample": False, "eos_token_id": [end, 2], "pad_token_id": 2},
    )
    _write(folder / "preprocessor_config.json", preprocessor_config(model))
    processor = json.loads((ROOT / "processor_config.json").read_text())
    sizes = {
        "downsample_factor": round(1 / model["downsample_ratio"]),
        "patch_size": model["vision_config"]["patch_size"],
    }
    _write(folder / "processor_config.json", processor | sizes)
    shutil.copyfile(ROOT / "chat_template.jinja", folder / "chat_template.jinja")


def preprocessor_config(model: dict[str, Any]) -> dict[str, Any]:
    """Give the image processor's settings: those of the package with this model's tile size."""
    settings = json.loads((ROOT / "preprocessor_config.json").read_text())
    side = model["force_image_size"]
    # Some image processors of other engines read the published CLIP-style names.
    return settings | {
        "crop_size": side,
        "size": side,
        "tile_size": side,
        "min_tiles": model["min_dynamic_patch"],
        "max_tiles": model["max_dynamic_patch"],
        "use_thumbnail": model["use_thumbnail"],
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }


def _write_tokenizer_files(folder: Path, special: dict[str, int]) -> None:
    _write(folder / "added_tokens.json", dict(sorted(special.items())))
    additional = [*ADDITIONAL, *(token for token in SPECIAL_TOKENS if token not in ADDITIONAL)]
    named = {name: _token(content) for name, content in NAMED.items()}
    _write(folder / "special_tokens_map.json", {"additional_special_tokens": additional} | named)
    by_id = {0: "<unk>", 1: "<s>", 2: "</s>"} | {index: token for token, index in special.items()}
    settings = {
        "added_tokens_decoder": {str(index): _token(token) | {"special": True} for index, token in by_id.items()},
        "additional_special_tokens": additional,
        "auto_map": {"AutoTokenizer": list(TOKENIZERS)},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "tokenizer_class": "InternLM2Tokenizer",
    }
    _write(folder / "tokenizer_config.json", dict(sorted((settings | NAMED).items())))


def main() -> None:
    """Write the data files of the embedded checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=TINY, help="checkpoint folder")
    write_data_files(parser.parse_args().folder, load_config())


if __name__ == "__main__":
    main()
