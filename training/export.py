"""Writes a training checkpoint as a checkpoint folder in the published layout.

That is: sharded bf16 safetensors, config, tokenizer and the other data files, no training heads. Run it with
`python -m training.export RUNS/joint`.
"""

import argparse
from pathlib import Path

from huggingface_hub import save_torch_state_dict

from training.data import load_config
from training.prepare import TINY, write_data_files
from training.train import read_weights


# Two shards or more, so that the index is exercised as with the published 26B weights.
MAX_SHARD_SIZE = "4MB"


def export(checkpoint: Path, folder: Path) -> None:
    """Write the weights of a training checkpoint, without the training heads.

    Args:
        checkpoint: A run, checkpoint folder or file, see `read_weights`.
        folder: Receives the weights; its data files are written anew.
    """
    config = load_config()
    write_data_files(folder, config)
    weights = read_weights(checkpoint)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    # In the order of their names, so that the same weights give the same files.
    model = {name: weights[name].bfloat16() for name in sorted(weights) if not name.startswith("heads.")}
    save_torch_state_dict(model, folder, max_shard_size=MAX_SHARD_SIZE)
    for shard in folder.glob("*.safetensors"):
        shard.chmod(0o644)


def main() -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a run, or one of its checkpoints")
    parser.add_argument("--folder", type=Path, default=TINY, help="checkpoint folder to write")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.folder)


if __name__ == "__main__":
    main()
