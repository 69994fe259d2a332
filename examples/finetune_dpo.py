"""Teach a checkpoint which of two answers to prefer, with TRL's DPOTrainer and LoRA, on pictures drawn here.

Usage: `python -m examples.finetune_dpo [--model FOLDER] [--loss mpo | dpo] [--output RUN]` in the repository's root.
Asked in English for a colour, the model shall prefer to name it in Chinese. The loss is that of InternVL 2.5's Mixed
Preference Optimization (arXiv 2411.10442) in TRL's terms, without its moving reward shift; or DPO alone.
The result is `RUN/model`, a folder like the one it came from.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin
from trl import DPOConfig, DPOTrainer

from examples.finetune_sft import COLOURS, HAS_GPU, LORA, load, merge, pictures
from training.folders import load_processor


QUESTION = "What colour is it?"
# Which answer is better, how good each is, and how to say the better one, with the weights of the paper.
LOSSES = {
    "mpo": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "dpo": {"loss_type": ["sigmoid"]},
}


def preference(picture: dict) -> dict:
    """Write a pair of answers, as TRL's datasets have it."""
    return {
        "images": [picture["image"]],
        "prompt": [{"role": "user", "content": QUESTION}],
        "chosen": [{"role": "assistant", "content": COLOURS[picture["colour"]]}],
        "rejected": [{"role": "assistant", "content": picture["colour"]}],
    }


def train(model: PreTrainedModel, processor: ProcessorMixin, output: Path, steps: int, loss: str) -> DPOTrainer:
    """Train LoRA adapters and save them to `output/adapter`; without them the model is its own reference."""
    arguments = DPOConfig(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        warmup_steps=2,
        logging_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=not HAS_GPU,
        bf16=model.dtype == torch.bfloat16,
        max_length=None,  # see finetune_sft.py
        gradient_checkpointing=True,  # TRL's default
        beta=0.1,
        **LOSSES[loss],
    )
    trainer = DPOTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list([preference(picture) for picture in pictures(32, seed=1)]),
        processing_class=processor,
        peft_config=LORA,
    )
    trainer.train()
    trainer.save_model(str(output / "adapter"))
    return trainer


def main() -> None:
    """Train, merge, reload and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("tiny"), help="checkpoint folder (default: the embedded)")
    parser.add_argument("--loss", choices=LOSSES, default="mpo", help="what is minimised (default: mpo)")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps")
    parser.add_argument("--output", type=Path, default=Path("runs/dpo"), help="folder of the run")
    options = parser.parse_args()

    processor = load_processor(options.model)
    dtype = torch.bfloat16 if HAS_GPU else torch.float32
    train(load(options.model, dtype=dtype), processor, options.output, options.steps, options.loss)

    merge(options.model, options.output / "adapter", options.output / "model")
    model, processor = load(options.output / "model"), load_processor(options.output / "model")
    for picture in pictures(4, seed=2):
        tiles = processor.image_processor(picture["image"])["pixel_values"]
        print(picture["colour"], "->", model.chat(processor.tokenizer, tiles, QUESTION))


if __name__ == "__main__":
    main()
