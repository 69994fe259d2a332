"""Writes a training checkpoint as a checkpoint folder in the published layout.

That is: sharded bf16 safetensors, config, tokenizer and the other data files, no training heads. The second call
writes the mean of two runs.

    python -m training.export RUNS/joint
    python -m training.export RUNS/joint RUNS/joint9 0.4
"""

import argparse
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

from training.data import load_config
from training.durable import replaced_folder
from training.prepare import TINY, write_data_files
from training.train import read_weights


# Two shards or more, so that the index is exercised as with the published 26B weights.
MAX_SHARD_SIZE = "4MB"


def export(checkpoint: Path, folder: Path, other: Path | None = None, share: float = 0.5) -> None:
    """Write the weights of a training checkpoint, without the training heads.

    Args:
        checkpoint: A run, checkpoint folder or file, see `read_weights`.
        folder: Receives the weights and new data files, when all of them are complete.
        other: A checkpoint of a run that went on from this one, to be averaged with it (arXiv 2203.05482), or None.
        share: The other's share of the mean, 0 to 1.

    Raises:
        ValueError: If `share` is out of range, or the two checkpoints have weights of other names.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The share is {share}; expected a number from 0 to 1.")
    config = load_config()
    weights = _without_heads(read_weights(checkpoint))
    if other is not None:
        others = _without_heads(read_weights(other))
        if others.keys() != weights.keys():
            raise ValueError(
                f"{other} has other weights than {checkpoint}: {sorted(others.keys() ^ weights.keys())[:3]}"
            )
        weights = {name: (1 - share) * weights[name].float() + share * others[name].float() for name in weights}
    # In the order of their names, so that the same weights give the same files.
    model = {name: weights[name].bfloat16() for name in sorted(weights)}
    with replaced_folder(folder) as new:
        write_data_files(new, config)
        save_torch_state_dict(model, new, max_shard_size=MAX_SHARD_SIZE)
        for shard in new.glob("*.safetensors"):
            shard.chmod(0o644)


def _without_heads(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith("heads.")}


def main() -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a run, or one of its checkpoints")
    parser.add_argument("other", type=Path, nargs="?", help="another to average it with")
    parser.add_argument("share", type=float, nargs="?", default=0.5, help="the other's share of the mean")
    parser.add_argument("--folder", type=Path, default=TINY, help="checkpoint folder to write")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.folder, arguments.other, arguments.share)


if __name__ == "__main__":
    main()
