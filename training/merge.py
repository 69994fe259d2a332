"""Checkpoint folders in the published layout: writes one, and merges LoRA adapters into one.

Merge by hand, for example a checkpoint of a run that goes on, with `python -m training.merge BASE ADAPTER TARGET`.
"""

import argparse
import shutil
import warnings
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftModel
from transformers import AutoConfig

from training.durable import replaced_folder
from training.folders import load_model, local_folder, located


# Everything of a checkpoint folder but weights and cards: settings, code, chat template, tokenizer.
KEPT = (".json", ".py", ".jinja", ".model", ".txt")
WEIGHT_INDEX = ".index.json"


def write_folder(state: dict[str, torch.Tensor], source: Path, target: Path) -> None:
    """Write a checkpoint folder: new weights, in the dtype of the source, and whatever else the source has.

    Args:
        state: Weights by name.
        source: The folder that the model came from.
        target: The folder to write; it changes when the new weights are complete.
    """
    place, options = located(source)
    dtype = AutoConfig.from_pretrained(place, **options).dtype or torch.float32
    with replaced_folder(target) as new:
        # Copies, because gathered weights may be views of something larger.
        save_torch_state_dict({name: value.to(dtype, copy=True) for name, value in state.items()}, new)
        for folder, suffixes in ((place, (".py",)), (source, KEPT)):
            for file in folder.iterdir():
                if file.suffix in suffixes and not file.name.endswith(WEIGHT_INDEX):
                    shutil.copyfile(file, new / file.name)


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Merge LoRA adapters into the weights of a checkpoint folder.

    Args:
        base: The folder that was fine-tuned.
        adapter: The folder of the adapters.
        target: The folder to write.

    Raises:
        FileNotFoundError: If `base` is not a folder.
        UserWarning: If adapters are missing; they would be taken for zeros.
    """
    base = local_folder(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model = PeftModel.from_pretrained(load_model(base), adapter).merge_and_unload()
    write_folder(model.state_dict(), base, target)


def main() -> None:
    """Merge from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="checkpoint folder that was fine-tuned")
    parser.add_argument("adapter", type=Path, help="folder of the adapters, for example a checkpoint of the run")
    parser.add_argument("target", type=Path, help="folder to write")
    options = parser.parse_args()
    merge(options.base, options.adapter, options.target)


if __name__ == "__main__":
    main()
