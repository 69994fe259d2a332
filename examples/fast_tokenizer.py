"""Write tokenizer.json beside the tokenizer.model of a folder: `python -m examples.fast_tokenizer FOLDER`."""

import argparse
import json
from pathlib import Path

from transformers.dynamic_module_utils import get_class_from_dynamic_module


PACKAGE = Path(__file__).resolve().parents[1]
TOKENIZERS = ("tokenization_internlm2.InternLM2Tokenizer", "tokenization_internlm2_fast.InternLM2TokenizerFast")


def write_fast_tokenizer(folder: Path) -> Path:
    """Make the fast tokenizer of a folder from its tokenizer.model, and name it in tokenizer_config.json.

    Args:
        folder: A checkpoint folder with tokenizer.model and tokenizer_config.json; its other files are not read.

    Returns:
        The path of tokenizer.json.

    Raises:
        ValueError: If there is no tokenizer.model, or it is not one.
    """
    target, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer_class = get_class_from_dynamic_module(TOKENIZERS[1], str(PACKAGE))
    tokenizer = tokenizer_class.from_pretrained(folder, tokenizer_file="")  # not an older tokenizer.json
    tokenizer.backend_tokenizer.save(str(target))
    settings = json.loads(settings_file.read_text("utf-8"))
    settings.setdefault("auto_map", {})["AutoTokenizer"] = list(TOKENIZERS)
    settings_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return target


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder with tokenizer.model")
    print(write_fast_tokenizer(parser.parse_args().folder))


if __name__ == "__main__":
    main()
